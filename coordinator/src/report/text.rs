//! The report for people at a terminal. Pure: a document in, text out.

use std::fmt::Write;

use super::document::{Document, Table};

pub(super) fn of(document: &Document) -> String {
    let mut text = String::new();
    line(&mut text, &format!("run {}. {}", document.run, document.facts));
    line(&mut text, "");
    for headline in &document.headline {
        line(&mut text, &format!("{}: {}", headline.variant, headline.says()));
    }
    for section in &document.sections {
        for table in section.tables.iter().filter(|table| !table.detail) {
            line(&mut text, "");
            line(&mut text, &format!("{}:", table.title));
            grid(&mut text, table);
        }
    }
    line(&mut text, "");
    line(&mut text, "Percentages with 95 % Wilson intervals in brackets.");
    text
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

/// Writes rows of cells, the first left-aligned, the others right-aligned to the widest of their column.
fn grid(text: &mut String, table: &Table) {
    let rows = || [&table.heads].into_iter().chain(&table.rows);
    let width = |column: usize| rows().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..table.heads.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows() {
        let mut cells = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = match column {
                0 => write!(cells, "{cell:<width$}", width = widths[0]),
                _ => write!(cells, "  {cell:>width$}", width = widths[column]),
            };
        }
        line(text, cells.trim_end());
    }
}
