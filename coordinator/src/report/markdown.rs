//! The report as GitHub-flavoured Markdown. Pure: a document in, text out.

use super::document::{Document, Table};

pub(super) fn of(document: &Document) -> String {
    let mut blocks = vec![format!("# Report on the run {}", escape(&document.run)), escape(&document.facts)];
    let headline =
        document.headline.iter().map(|line| format!("- **{}**: {}", escape(&line.variant), escape(&line.says())));
    blocks.push(headline.collect::<Vec<_>>().join("\n"));
    for section in &document.sections {
        blocks.push(format!("## {}", section.title));
        blocks.extend(section.paragraphs.iter().map(|paragraph| escape(paragraph)));
        for of in &section.tables {
            blocks.push(format!("### {}", escape(&of.title)));
            blocks.push(table(of));
        }
    }
    blocks.join("\n\n") + "\n"
}

fn table(table: &Table) -> String {
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
        format!("| {} |", cells.join(" | "))
    };
    let alignment: Vec<&str> = (0..table.heads.len()).map(|column| if column == 0 { "---" } else { "---:" }).collect();
    let mut lines = vec![row(&table.heads), format!("| {} |", alignment.join(" | "))];
    lines.extend(table.rows.iter().map(|cells| row(cells)));
    lines.join("\n")
}

/// Takes the meaning from every letter that Markdown or HTML in it could give one within a line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '|' | '[' | ']' | '~' | '#' => {
                escaped.push('\\');
                escaped.push(letter);
            }
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_letters_and_lose_their_meaning() {
        assert_eq!(escape("oracle-punish 93.0 (90.1–95.1)"), "oracle-punish 93.0 (90.1–95.1)");
        assert_eq!(escape("<b>|a_b|[x](y)`"), "&lt;b&gt;\\|a\\_b\\|\\[x\\](y)\\`");
    }
}
