//! What is neither JSON nor a tensor: Enum members, images, dates, Decimal, UUID, dataclasses and Pydantic models.

use super::fault::{Fault, Outcome, Step, shortened};
use super::{Walk, kinds, refused};
use infercache_core::tensor::{self, Layout};
use pyo3::exceptions::{PyException, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};
use std::path::Path;

/// Why an image has no pixels: PIL reads a file only when they are asked for, and it may be cut short, broken or closed.
#[cold]
fn unreadable(image: &Bound<'_, PyAny>, error: PyErr) -> Box<Fault> {
    let py = image.py();
    if error.is_instance_of::<PyMemoryError>(py) || !error.is_instance_of::<PyException>(py) {
        return error.into();
    }
    let file = image.getattr("filename").ok().and_then(|name| name.extract::<String>().ok()).unwrap_or_default();
    let name = Path::new(&file).file_name().map(|name| format!(" in {:?}", shortened(&name.to_string_lossy())));
    let (of, advice) = (name.unwrap_or_default(), "pass an image whose load() succeeds, or the file's bytes");
    refused(image, &format!("its pixels{of} cannot be read ({error}); {advice}"))
}

impl<'py> Walk<'_, 'py> {
    pub(super) fn enum_member(&mut self, member: &Bound<'py, PyAny>) -> Outcome {
        let value = member.getattr(crate::lazy::intern!(self.py, "value"))?;
        if value.is(member) {
            return Err(refused(member, "an Enum member whose value is itself"));
        }
        self.value(&value)
    }

    /// A PIL image: mode, size and the pixels of the current frame.
    pub(super) fn image(&mut self, image: &Bound<'py, PyAny>) -> Outcome {
        let py = self.py;
        let mode: String = image.getattr(crate::lazy::intern!(py, "mode"))?.extract()?;
        // Its own methods, whatever a subclass overrides.
        let class =
            kinds::attribute(py, "PIL.Image", "Image").ok_or_else(|| refused(image, "PIL is no longer imported"))?;
        let (image, mode) = match mode.as_str() {
            "1" | "L" | "LA" | "RGB" | "RGBA" | "CMYK" | "YCbCr" | "LAB" | "HSV" | "I" | "F" | "I;16" => {
                (image.clone(), mode)
            }
            "P" | "PA" => {
                let converted = class.getattr(crate::lazy::intern!(py, "convert"))?.call1((image, "RGBA"));
                (converted.map_err(|error| unreadable(image, error))?, "RGBA".to_owned())
            }
            other => {
                let reason = format!("an image of mode {other:?} has no form; convert it, to \"RGB\" say");
                return Err(refused(image, &reason));
            }
        };
        let pixels = class.getattr(crate::lazy::intern!(py, "tobytes"))?.call1((&image,));
        let pixels = pixels.map_err(|error| unreadable(&image, error))?;
        let size: (usize, usize) = image.getattr(crate::lazy::intern!(py, "size"))?.extract()?;
        let pixels = pixels.cast_into::<PyBytes>().map_err(PyErr::from)?;
        let bytes = pixels.as_bytes();
        // PIL gives 32-bit pixels in the machine's order.
        let swap = if cfg!(target_endian = "big") && (mode == "I" || mode == "F") { 4 } else { 0 };
        let itemsize = if swap == 0 { 1 } else { 4 };
        let layout = Layout::contiguous(&[bytes.len() / itemsize], itemsize, swap);
        // SAFETY: the layout is that of `bytes`, which `pixels` keeps.
        let digest = crate::released::released(py, || unsafe { tensor::digest(bytes.as_ptr(), &layout) });
        Ok(self.out.image_form(&digest, &mode, [size.0, size.1])?)
    }

    /// A datetime or date, by its `isoformat()`.
    pub(super) fn moment(&mut self, moment: &Bound<'py, PyAny>, form: &str) -> Outcome {
        let text = moment.call_method0(crate::lazy::intern!(self.py, "isoformat"))?;
        let text = text.cast::<PyString>().map_err(PyErr::from)?;
        Ok(self.out.text_form(form, text.to_str()?)?)
    }

    pub(super) fn time(&mut self, time: &Bound<'py, PyAny>) -> Outcome {
        let py = self.py;
        if !time.getattr(crate::lazy::intern!(py, "tzinfo"))?.is_none()
            && time.call_method0(crate::lazy::intern!(py, "utcoffset"))?.is_none()
        {
            return Err(refused(
                time,
                "a time with a zone has no offset without a date; pass a datetime, or a time without zone",
            ));
        }
        self.moment(time, "$time")
    }

    pub(super) fn decimal(&mut self, decimal: &Bound<'py, PyAny>) -> Outcome {
        let class = kinds::attribute(self.py, "decimal", "Decimal")
            .ok_or_else(|| refused(decimal, "decimal is no longer imported"))?;
        // Its own text, whatever a subclass makes of it.
        let text = class.getattr(crate::lazy::intern!(self.py, "__str__"))?.call1((decimal,))?;
        let text = text.cast::<PyString>().map_err(PyErr::from)?;
        // A decimal context can ask for a small `e`; no other letter of the text is one.
        Ok(self.out.text_form("$decimal", &text.to_str()?.replace('e', "E"))?)
    }

    pub(super) fn uuid(&mut self, uuid: &Bound<'py, PyAny>) -> Outcome {
        let class =
            kinds::attribute(self.py, "uuid", "UUID").ok_or_else(|| refused(uuid, "uuid is no longer imported"))?;
        // The slot of UUID itself, whatever a subclass calls `int`.
        let slot = class.getattr(crate::lazy::intern!(self.py, "int"))?;
        let number: u128 = slot.call_method1(crate::lazy::intern!(self.py, "__get__"), (uuid, &class))?.extract()?;
        let hex = format!("{number:032x}");
        let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        Ok(self.out.text_form("$uuid", &text)?)
    }

    /// A dataclass instance: its declared fields, as the attributes hold them.
    pub(super) fn dataclass(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        let py = self.py;
        let declared = value.get_type().getattr(crate::lazy::intern!(py, "__dataclass_fields__"))?;
        let declared = declared.cast_into::<PyDict>().map_err(PyErr::from)?;
        let field_kind = kinds::attribute(py, "dataclasses", "_FIELD");
        let mut fields = Vec::with_capacity(declared.len());
        // A copy, because reading an attribute may run code that changes the class.
        for (name, field) in &declared.copy()? {
            // Class variables and init-only variables are listed too, and are no fields.
            let kind = field.getattr(crate::lazy::intern!(py, "_field_type"))?;
            if field_kind.as_ref().is_none_or(|field_kind| kind.is(field_kind)) {
                let held = self.held(value, &name)?;
                fields.push((name, held));
            }
        }
        self.record(value, &fields)
    }

    /// A Pydantic model: its declared fields and extras, as the attributes hold them. A RootModel is its root.
    pub(super) fn model(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        let py = self.py;
        let class = value.get_type();
        let declared = class
            .getattr(crate::lazy::intern!(py, "__pydantic_fields__"))
            .or_else(|_| class.getattr(crate::lazy::intern!(py, "model_fields")))?;
        let declared = declared.cast_into::<PyDict>().map_err(PyErr::from)?;
        let root_model = kinds::attribute(py, "pydantic", "RootModel");
        if root_model.is_some_and(|root_model| value.is_instance(&root_model).unwrap_or(false)) {
            let root = self.held(value, PyString::intern(py, "root").as_any())?;
            return self.hop(|walk| walk.value(&root));
        }
        let mut fields = Vec::with_capacity(declared.len());
        for (name, _) in &declared.copy()? {
            let held = self.held(value, &name)?;
            fields.push((name, held));
        }
        let extra = value.getattr(crate::lazy::intern!(py, "__pydantic_extra__"))?;
        if let Ok(extra) = extra.cast::<PyDict>() {
            fields.extend(extra.iter());
        }
        self.record(value, &fields)
    }

    /// What the attribute of a field holds; a field without one is an error, as nothing says what it stands for.
    fn held(&self, value: &Bound<'py, PyAny>, name: &Bound<'py, PyAny>) -> Outcome<Bound<'py, PyAny>> {
        let name = name.cast::<PyString>().map_err(PyErr::from)?;
        value.getattr(name).map_err(|error| {
            let name = name.to_string();
            if error.is_instance_of::<pyo3::exceptions::PyAttributeError>(self.py) {
                return refused(value, &format!("its field {name:?} holds no value"));
            }
            Box::<Fault>::from(error).at(|| Step::Name(name))
        })
    }
}
