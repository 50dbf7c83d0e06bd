//! Finds the field of a record that an error is about, from the position the parser stopped at.

/// A top-level field: its name and where its value lies, from the colon to the next comma or brace.
struct Span {
    name: String,
    start: usize,
    end: usize,
}

/// Returns the field that an error is about, if it is one of the record's own, and the problem in words.
pub(super) fn explain(bytes: &[u8], error: &serde_json::Error) -> (Option<String>, String) {
    let message = error.to_string();
    let message = match message.rfind(" at line ") {
        Some(at) => &message[..at],
        None => &message,
    };
    if error.is_eof() {
        return (None, "is cut off: the JSON value has no end".into());
    }
    if error.is_syntax() {
        return (field_at(bytes, offset(bytes, error)), format!("is not valid JSON: {message}"));
    }
    if let Some(field) = field_at(bytes, offset(bytes, error)) {
        return (Some(field), message.to_owned());
    }
    match message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        Some(field) => (Some(field.to_owned()), "is missing".into()),
        None => (None, message.to_owned()),
    }
}

/// Returns the top-level field whose value holds the byte at `offset`.
pub(super) fn field_at(bytes: &[u8], offset: usize) -> Option<String> {
    spans(bytes).into_iter().find(|span| (span.start..span.end).contains(&offset)).map(|span| span.name)
}

/// Byte offset of the last byte the parser had read; its columns count bytes from 1.
fn offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    let line_start = match error.line() {
        0 | 1 => 0,
        line => {
            let newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            newlines.map(|(at, _)| at + 1).nth(line - 2).unwrap_or(0)
        }
    };
    line_start + error.column().saturating_sub(1)
}

/// Cuts an object into its top-level fields, as far as it is well formed; anything else has none.
fn spans(bytes: &[u8]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let (mut depth, mut string_start, mut escaped) = (0usize, None, false);
    let mut last_string = String::new();
    let mut open: Option<Span> = None;
    for (at, &byte) in bytes.iter().enumerate() {
        if let Some(start) = string_start {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    if depth == 1 && open.is_none() {
                        last_string = String::from_utf8_lossy(&bytes[start..at]).into_owned();
                    }
                    string_start = None;
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string_start = Some(at + 1),
            b'{' | b'[' => depth += 1,
            b':' if depth == 1 && open.is_none() => {
                open = Some(Span { name: std::mem::take(&mut last_string), start: at, end: bytes.len() });
            }
            b',' | b'}' | b']' if depth == 1 => {
                if let Some(mut span) = open.take() {
                    span.end = at;
                    spans.push(span);
                }
                if byte != b',' {
                    break;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    // A record cut off, or a string without an end: the last field reaches to the end.
    spans.extend(open);
    spans
}
