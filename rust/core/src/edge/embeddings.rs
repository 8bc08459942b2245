//! OpenAI's `/v1/embeddings`: an entry for each item of `input`, whatever encoding it is asked for in.

mod query; // a request's text to its items and their keys
mod record; // one item's answer as stored: the numbers, and what stood around them
mod render; // stored records to the answer's text
mod response; // the model server's answer to records

pub use query::Query;
pub use record::{Form, Record};
pub(super) use render::number as write_number;
pub use render::{Usage, render};
pub use response::{Answer, records};

#[cfg(test)]
mod tests;
