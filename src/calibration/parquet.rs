//! Rows of a Parquet file as texts and conversations: the column `text`, or `messages` or `conversations` as in JSONL. Of
//! a large file only every n-th row is looked at, spread evenly over the whole. Without the feature `parquet` it says so.

use crate::eval::text::Document;
use crate::{Error, Result};
use std::path::Path;

/// What was read.
pub struct Table {
    pub documents: Vec<Document>,
    /// Rows between them that were passed over.
    pub passed: usize,
}

/// Errors: `Unsupported` when this program cannot read Parquet.
#[cfg(not(feature = "parquet"))]
pub fn available(source: &str) -> Result<()> {
    Err(Error::unsupported(format!("calibration source '{source}': this build reads no Parquet")).hint(
        "build with `cargo install quantize-cli --features parquet`, or export the rows as JSONL with a \"text\" field",
    ))
}

#[cfg(not(feature = "parquet"))]
pub fn open(path: &Path) -> Result<Table> {
    available(&path.display().to_string()).map(|()| Table { documents: Vec::new(), passed: 0 })
}

#[cfg(feature = "parquet")]
pub use reader::open;

#[cfg(feature = "parquet")]
pub fn available(_: &str) -> Result<()> {
    Ok(())
}

#[cfg(feature = "parquet")]
mod reader {
    use super::*;
    use crate::eval::text::document;
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::{Field, Row};
    use ::parquet::schema::types::Type;
    use serde_json::{Map, Value};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    /// Columns that are read.
    const COLUMNS: [&str; 3] = ["text", "messages", "conversations"];
    /// Bytes of text, about, of which windows are drawn; more would be tokenized to no end.
    const ENOUGH: u64 = 32 << 20;

    /// Errors: `BadInput` for a file that is damaged, has none of the columns, or no rows; `Io`.
    pub fn open(path: &Path) -> Result<Table> {
        let file = crate::input::open(path)?;
        // The reader checks much, and still trusts a damaged file's numbers here and there.
        catch_unwind(AssertUnwindSafe(|| read(path, file)))
            .unwrap_or_else(|_| Err(Error::bad_file(path, "the Parquet file is damaged")))
    }

    fn read(path: &Path, file: std::fs::File) -> Result<Table> {
        let damaged = |e: ::parquet::errors::ParquetError| {
            Error::bad_file(path, format!("is not a Parquet file that can be read: {e}"))
        };
        let reader = SerializedFileReader::new(file).map_err(damaged)?;
        let metadata = reader.metadata();
        let schema = metadata.file_metadata().schema();
        let fields: Vec<_> = schema.get_fields().iter().filter(|f| COLUMNS.contains(&f.name())).cloned().collect();
        if fields.is_empty() {
            let names: Vec<&str> = schema.get_fields().iter().take(12).map(|f| f.name()).collect();
            return Err(Error::bad_file(path, format!("has no column 'text' or 'messages' but: {}", names.join(", ")))
                .hint("rename the column that holds the text, or export it as JSONL"));
        }
        let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
        if rows == 0 {
            return Err(Error::bad_file(path, "the calibration data is empty"));
        }
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
        let wanted = columns.filter(|c| c.column_path().parts().first().is_some_and(|p| COLUMNS.contains(&p.as_str())));
        let bytes: u64 = wanted.map(|c| u64::try_from(c.uncompressed_size()).unwrap_or(0)).sum();
        let step = bytes.div_ceil(ENOUGH).max(1) as usize;
        let projection = Type::group_type_builder(schema.name()).with_fields(fields.iter().map(Arc::clone).collect());
        let projection = projection.build().map_err(damaged)?;
        let mut table = Table { documents: Vec::new(), passed: 0 };
        for (i, row) in reader.get_row_iter(Some(projection)).map_err(damaged)?.enumerate() {
            let row = row.map_err(damaged)?;
            if i % step != 0 {
                table.passed += 1;
                continue;
            }
            let parsed = parse(&row).map_err(|e| Error::bad_file(path, format!("row {}: {e}", i + 1)))?;
            table.documents.push(parsed);
        }
        Ok(table)
    }

    /// A row whose columns are all null holds no text.
    fn parse(row: &Row) -> Result<Document, String> {
        match Value::Object(object(row)) {
            Value::Object(object) if object.is_empty() => Ok(Document::Text(String::new())),
            value => document(&value),
        }
    }

    fn object(row: &Row) -> Map<String, Value> {
        let columns = row.get_column_iter().map(|(name, field)| (name.clone(), value(field)));
        columns.filter(|(_, value)| !value.is_null()).collect()
    }

    /// Strings and what holds them; nothing else is a text.
    fn value(field: &Field) -> Value {
        match field {
            Field::Str(text) => Value::String(text.clone()),
            Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, |text| Value::String(text.to_string())),
            Field::Group(row) => Value::Object(object(row)),
            Field::ListInternal(list) => list.elements().iter().map(value).collect(),
            _ => Value::Null,
        }
    }
}
