//! datetime, date, time, timedelta, Decimal, UUID and NumPy's scalars, known by their exact class.

use crate::lazy::Lazy;
use crate::lazy::intern;
use infercache_core::value::moment::{Date, Delta, Time, Zone};
use infercache_core::value::{Item, ext};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyType};

use super::arrays;
use super::encode::{Done, Encoder, refuse, surrogates};
use crate::document::attribute;

const DATETIME: u8 = 1;
const DATE: u8 = 2;
const TIME: u8 = 3;
const TIMEDELTA: u8 = 4;
const DECIMAL: u8 = 5;
const UUID: u8 = 6;
const NUMPY_STR: u8 = 7;
const NUMPY_BYTES: u8 = 8;
const NUMPY_SCALAR: u8 = 9;

/// NumPy's scalars by the names that every platform has; several may name one class.
const SCALARS: [&str; 23] = [
    "bool_",
    "byte",
    "short",
    "intc",
    "int_",
    "longlong",
    "ubyte",
    "ushort",
    "uintc",
    "uint",
    "ulonglong",
    "int64",
    "uint64",
    "int32",
    "uint32",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "datetime64",
    "timedelta64",
    "ulonglong",
];

/// Classes of NumPy and of `datetime`, which NumPy imports, whose instances can be stored: class to one of the numbers above.
fn classes(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    static CLASSES: Lazy<Py<PyDict>> = Lazy::new();
    let classes = CLASSES.get_or_make(py, || {
        let classes = PyDict::new(py);
        let numpy = py.import("numpy")?;
        for name in SCALARS {
            classes.set_item(numpy.getattr(name)?, NUMPY_SCALAR)?;
        }
        classes.set_item(numpy.getattr("str_")?, NUMPY_STR)?;
        classes.set_item(numpy.getattr("bytes_")?, NUMPY_BYTES)?;
        let standard = [
            ("datetime", "datetime", DATETIME),
            ("datetime", "date", DATE),
            ("datetime", "time", TIME),
            ("datetime", "timedelta", TIMEDELTA),
        ];
        for (module, name, number) in standard {
            classes.set_item(py.import(module)?.getattr(name)?, number)?;
        }
        Ok::<_, PyErr>(classes.unbind())
    })?;
    Ok(classes.bind(py))
}

/// The number of a class whose instances can be stored, if it is one. Nothing is imported for it: an instance of what
/// nobody imported cannot exist.
fn number(class: &Bound<'_, PyType>) -> PyResult<Option<u8>> {
    let py = class.py();
    if let Some(number) = classes(py)?.get_item(class)? {
        return number.extract().map(Some);
    }
    let is = |module, name| attribute(py, module, name).is_some_and(|known| known.is(class));
    Ok(if is("decimal", "Decimal") {
        Some(DECIMAL)
    } else if is("uuid", "UUID") {
        Some(UUID)
    } else {
        None
    })
}

/// Whether instances of exactly this class are stored without anyone declaring it.
pub(super) fn knows(class: &Bound<'_, PyType>) -> PyResult<bool> {
    Ok(number(class)?.is_some())
}

/// Adds a value if its class is among these; whether it was.
pub(super) fn write<'py>(
    to: &mut Encoder<'_, 'py>,
    value: &Bound<'py, PyAny>,
    class: &Bound<'py, PyType>,
) -> Done<bool> {
    let py = to.py;
    let Some(number) = number(class)? else { return Ok(false) };
    match number {
        DATETIME => to.writer.datetime(date_of(value)?, time_of(value, &mut Names::default())?),
        DATE => to.writer.date(date_of(value)?),
        TIME => to.writer.time(time_of(value, &mut Names::default())?),
        TIMEDELTA => to.writer.timedelta(delta_of(value)?),
        DECIMAL => to.blob(ext::DECIMAL, value.str()?.to_str()?.as_bytes())?,
        UUID => {
            let bytes = value.getattr(intern!(py, "bytes"))?;
            let mut bytes = bytes.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes().to_vec();
            let safe = value.getattr(intern!(py, "is_safe"))?.getattr(intern!(py, "name"))?;
            match safe.extract::<String>()?.as_str() {
                "safe" => bytes.push(1),
                "unsafe" => bytes.push(2),
                _ => (),
            }
            to.blob(ext::UUID, &bytes)?;
        }
        NUMPY_STR => {
            // The text itself, whatever the scalar's width: trailing zeros would be lost in an array.
            let text = value.cast::<PyString>().map_err(PyErr::from)?;
            to.blob(ext::NUMPY_STR, surrogates(text)?.as_bytes())?;
        }
        NUMPY_BYTES => to.blob(ext::NUMPY_BYTES, value.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes())?,
        _ => return arrays::write_scalar(value, &mut to.writer)?.or_else(refuse).map(|()| true),
    }
    Ok(true)
}

fn get<'py, T>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    value.getattr(name)?.extract()
}

fn date_of(value: &Bound<'_, PyAny>) -> PyResult<Date> {
    Ok(Date { year: get(value, "year")?, month: get(value, "month")?, day: get(value, "day")? })
}

fn delta_of(value: &Bound<'_, PyAny>) -> PyResult<Delta> {
    Ok(Delta { days: get(value, "days")?, seconds: get(value, "seconds")?, microseconds: get(value, "microseconds")? })
}

/// Keeps the bytes that a [`Zone`] borrows.
type Names<'py> = Option<Bound<'py, PyBytes>>;

fn time_of<'a, 'py>(value: &Bound<'py, PyAny>, names: &'a mut Names<'py>) -> Done<Time<'a>> {
    Ok(Time {
        hour: get(value, "hour")?,
        minute: get(value, "minute")?,
        second: get(value, "second")?,
        fold: get(value, "fold")?,
        microsecond: get(value, "microsecond")?,
        zone: zone_of(&value.getattr("tzinfo")?, names)?,
    })
}

fn zone_of<'a, 'py>(zone: &Bound<'py, PyAny>, names: &'a mut Names<'py>) -> Done<Zone<'a>> {
    let py = zone.py();
    if zone.is_none() {
        return Ok(Zone::None);
    }
    let timezone = py.import(intern!(py, "datetime"))?.getattr(intern!(py, "timezone"))?;
    if zone.is(&timezone.getattr(intern!(py, "utc"))?) {
        return Ok(Zone::Utc);
    }
    let class = zone.get_type();
    if class.is(&timezone) {
        // What a pickle would keep: the offset, and the name if it was given one.
        let arguments = zone.call_method0(intern!(py, "__getinitargs__"))?;
        let offset = delta_of(&arguments.get_item(0)?)?;
        if arguments.len()? < 2 {
            return Ok(Zone::Fixed(offset, None));
        }
        let name = surrogates(arguments.get_item(1)?.cast::<PyString>().map_err(PyErr::from)?)?;
        return Ok(Zone::Fixed(offset, Some(names.insert(name).as_bytes())));
    }
    if attribute(py, "zoneinfo", "ZoneInfo").is_some_and(|known| class.is(&known)) {
        let key = zone.getattr(intern!(py, "key"))?;
        // One that was read from a file has no key, or one that need not be the database's.
        if key.is_instance_of::<PyString>() && class.call1((&key,)).is_ok_and(|known| known.is(zone)) {
            let key = key.cast::<PyString>().map_err(PyErr::from)?;
            return Ok(Zone::Named(names.insert(surrogates(key)?).as_bytes()));
        }
        return refuse("a ZoneInfo that is not the database's own cannot be stored");
    }
    refuse(format!(
        "a time zone of type {} cannot be stored; use timezone or ZoneInfo",
        super::encode::type_name(&class)
    ))
}

/// The object of an item of these classes; `None` for other items.
pub(super) fn build<'py>(py: Python<'py>, item: &Item<'_>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let datetime = py.import(intern!(py, "datetime"))?;
    Ok(Some(match item {
        Item::DateTime(date, time) => {
            let kwargs = PyDict::new(py);
            kwargs.set_item(intern!(py, "fold"), time.fold)?;
            let zone = zone(py, &datetime, &time.zone)?;
            let place = (date.year, date.month, date.day, time.hour, time.minute, time.second, time.microsecond, zone);
            datetime.getattr(intern!(py, "datetime"))?.call(place, Some(&kwargs))?
        }
        Item::Date(date) => datetime.getattr(intern!(py, "date"))?.call1((date.year, date.month, date.day))?,
        Item::Time(time) => {
            let kwargs = PyDict::new(py);
            kwargs.set_item(intern!(py, "fold"), time.fold)?;
            let zone = zone(py, &datetime, &time.zone)?;
            let place = (time.hour, time.minute, time.second, time.microsecond, zone);
            datetime.getattr(intern!(py, "time"))?.call(place, Some(&kwargs))?
        }
        Item::TimeDelta(value) => delta(&datetime, value)?,
        Item::Decimal(text) => {
            let text = PyString::new(py, &String::from_utf8_lossy(text));
            py.import(intern!(py, "decimal"))?.getattr(intern!(py, "Decimal"))?.call1((text,))?
        }
        Item::Uuid(bytes, safe) => uuid(py, bytes, *safe)?,
        _ => return Ok(None),
    }))
}

fn delta<'py>(datetime: &Bound<'py, PyModule>, value: &Delta) -> PyResult<Bound<'py, PyAny>> {
    let class = datetime.getattr(intern!(datetime.py(), "timedelta"))?;
    class.call1((value.days, value.seconds, value.microseconds))
}

fn zone<'py>(py: Python<'py>, datetime: &Bound<'py, PyModule>, zone: &Zone<'_>) -> PyResult<Bound<'py, PyAny>> {
    let timezone = || datetime.getattr(intern!(py, "timezone"));
    let text = |bytes: &[u8]| PyBytes::new(py, bytes).call_method1("decode", ("utf-8", "surrogatepass"));
    match zone {
        Zone::None => Ok(py.None().into_bound(py)),
        Zone::Utc => timezone()?.getattr(intern!(py, "utc")),
        Zone::Fixed(offset, None) => timezone()?.call1((delta(datetime, offset)?,)),
        Zone::Fixed(offset, Some(name)) => timezone()?.call1((delta(datetime, offset)?, text(name)?)),
        Zone::Named(key) => py.import(intern!(py, "zoneinfo"))?.getattr(intern!(py, "ZoneInfo"))?.call1((text(key)?,)),
    }
}

fn uuid<'py>(py: Python<'py>, bytes: &[u8; 16], safe: u8) -> PyResult<Bound<'py, PyAny>> {
    let module = py.import(intern!(py, "uuid"))?;
    let kwargs = PyDict::new(py);
    kwargs.set_item(intern!(py, "bytes"), PyBytes::new(py, bytes))?;
    if safe != 0 {
        let name = if safe == 1 { "safe" } else { "unsafe" };
        kwargs.set_item(intern!(py, "is_safe"), module.getattr(intern!(py, "SafeUUID"))?.getattr(name)?)?;
    }
    module.getattr(intern!(py, "UUID"))?.call((), Some(&kwargs))
}
