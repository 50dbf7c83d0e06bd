//! Rows of a Parquet file as JSON objects, row by row.
//!
//! Of PKU-SafeRLHF files only the columns that decide about a row are decoded; their nested maps are wide and unused.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use serde_json::{Map, Value};
use shared::{Error, Result};

use crate::data::row::Row;

/// First bytes of every Parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";

const PKU_COLUMNS: [&str; 6] =
    ["prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe", "safer_response_id"];

/// Opens a Parquet file.
pub(super) fn rows(path: &Path) -> Result<Box<dyn Iterator<Item = Result<Row>>>> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let damaged = {
        let path = path.to_owned();
        move |problem: String| Error::file(&path, format!("is not a readable Parquet file ({problem}); fetch it again"))
    };
    let opened = unwound(|| {
        let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
        let projection = projection(reader.metadata().file_metadata().schema())?;
        RowIter::from_file_into(Box::new(reader)).project(projection).map_err(|error| error.to_string())
    });
    let mut rows = opened.map_err(&damaged)?;
    let path = path.to_owned();
    let (mut index, mut ended) = (0, false);
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let row = match unwound(|| rows.next().transpose().map_err(|error| error.to_string())) {
            Ok(None) if index == 0 => Some(Err(Error::file(&path, "holds no record"))),
            Ok(row) => row.map(|row| object(row.into_columns(), &path, index)),
            Err(problem) => Some(Err(damaged(format!("record {index}: {problem}")))),
        };
        index += 1;
        ended = !matches!(row, Some(Ok(_)));
        row
    })))
}

/// The decoder asserts what a damaged file can break; such a panic becomes an error about the file.
fn unwound<T>(read: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("its content contradicts itself".into()))
}

/// The columns to decode: of a PKU-SafeRLHF file those that are used, otherwise all.
fn projection(schema: &Type) -> std::result::Result<Option<Type>, String> {
    let columns = schema.get_fields();
    if !columns.iter().any(|column| column.name() == "response_0") {
        return Ok(None);
    }
    let used: Vec<Arc<Type>> = columns.iter().filter(|column| PKU_COLUMNS.contains(&column.name())).cloned().collect();
    let group = Type::group_type_builder(schema.name()).with_fields(used).build();
    group.map(Some).map_err(|error| error.to_string())
}

fn object(columns: Vec<(String, Field)>, path: &Path, index: usize) -> Result<Row> {
    let mut row = Map::new();
    for (name, field) in columns {
        let value = value(&field).map_err(|problem| Error::field(path, index, &name, problem))?;
        row.insert(name, value);
    }
    Ok(row)
}

fn value(field: &Field) -> std::result::Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::from(text),
            Err(_) => return Err("holds bytes that are not UTF-8".into()),
        },
        Field::Group(row) => {
            let fields = row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?)));
            Value::Object(fields.collect::<std::result::Result<_, String>>()?)
        }
        Field::ListInternal(list) => {
            let elements = list.elements().iter().map(value);
            Value::Array(elements.collect::<std::result::Result<_, String>>()?)
        }
        other => return Err(format!("holds a value without a form in JSON: {other}")),
    })
}
