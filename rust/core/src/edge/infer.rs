//! Open Inference Protocol v2's `infer`: one key and one stored answer whether tensors come as JSON or as binary.
//!
//! A body is a JSON object and, with the binary extension, the tensors' bytes behind it in the order in which the object
//! names them.

mod answer; // the model server's answer to a record, and a record to the answer that is asked for
mod query; // a request's body to its key and what it wants of the answer
mod tensor; // a tensor's elements between JSON and native bytes

pub use answer::{age, record};
pub use query::Query;
pub use tensor::Datatype;

#[cfg(test)]
mod tests;
