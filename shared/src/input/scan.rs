//! Cuts a stream into the texts of its records without parsing them: the elements of an array, or lines.
//!
//! Only what is needed to find the ends of elements is checked here (brackets, commas, strings); everything inside an
//! element is left to the parser.

use std::io::BufRead;

/// Why no further record could be cut.
pub(super) enum Error {
    Read(std::io::Error),
    Form(&'static str),
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::Read(error)
    }
}

const CUT_OFF: &str = "the file ends in the middle of the array; it is cut off";

/// Skips white space; returns the byte after it without consuming it, and the number of newlines skipped.
pub(super) fn skip_space(source: &mut impl BufRead) -> std::io::Result<(Option<u8>, u64)> {
    let mut newlines = 0;
    loop {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            return Ok((None, newlines));
        }
        let space = buffer.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(buffer.len());
        newlines += buffer[..space].iter().filter(|byte| **byte == b'\n').count() as u64;
        let next = buffer.get(space).copied();
        source.consume(space);
        if next.is_some() {
            return Ok((next, newlines));
        }
    }
}

fn first_byte(source: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    Ok(skip_space(source)?.0)
}

/// The elements of a JSON array, as bytes.
pub(super) struct Elements<R> {
    source: R,
    element: Vec<u8>,
    opened: bool,
}

impl<R: BufRead> Elements<R> {
    /// Takes a source whose next byte is the opening bracket.
    pub(super) fn new(source: R) -> Self {
        Self { source, element: Vec::new(), opened: false }
    }

    /// Returns the next element, `None` after the closing bracket.
    pub(super) fn next_element(&mut self) -> Result<Option<&[u8]>, Error> {
        let is_first = !self.opened;
        if is_first {
            self.source.consume(1);
            self.opened = true;
        }
        match first_byte(&mut self.source)?.ok_or(Error::Form(CUT_OFF))? {
            b']' => {
                self.source.consume(1);
                return match first_byte(&mut self.source)? {
                    None => Ok(None),
                    Some(_) => Err(Error::Form("there is more text after the end of the array")),
                };
            }
            b',' if !is_first => {
                self.source.consume(1);
                match first_byte(&mut self.source)?.ok_or(Error::Form(CUT_OFF))? {
                    b']' | b',' => return Err(Error::Form("a comma of the array has no element after it")),
                    _ => {}
                }
            }
            b',' => return Err(Error::Form("the array starts with a comma")),
            _ if is_first => {}
            _ => return Err(Error::Form("there is no comma between this element of the array and the one before")),
        }
        self.read_element()?;
        Ok(Some(&self.element))
    }

    /// Reads up to, not including, the comma or bracket that ends the element.
    fn read_element(&mut self) -> Result<(), Error> {
        self.element.clear();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() {
                return Err(Error::Form(CUT_OFF));
            }
            let mut end = None;
            for (at, byte) in buffer.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => depth -= 1,
                    b']' | b',' if depth == 0 => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let taken = end.unwrap_or(buffer.len());
            self.element.extend_from_slice(&buffer[..taken]);
            self.source.consume(taken);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

/// The lines of a file that are not blank, as bytes.
pub(super) struct Lines<R> {
    source: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Takes a source of which the first `skipped` lines were read.
    pub(super) fn new(source: R, skipped: u64) -> Self {
        Self { source, line: Vec::new(), number: skipped }
    }

    /// Returns the next line that is not blank and its number from 1, `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<(&[u8], u64)>, Error> {
        loop {
            self.line.clear();
            if self.source.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((&self.line, self.number)));
            }
        }
    }
}
