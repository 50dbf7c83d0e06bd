//! Cuts a stream into the texts of its records without parsing them: the elements of an array, the fields of an object, or
//! lines.
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
const OBJECT_CUT_OFF: &str = "the file ends in the middle of the object; it is cut off";
const AFTER_OBJECT: &str = "there is more text after the end of the object";

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
    /// Nothing may follow the array.
    is_whole: bool,
}

impl<R: BufRead> Elements<R> {
    /// Takes a source whose next byte is the opening bracket.
    pub(super) fn new(source: R) -> Self {
        Self { source, element: Vec::new(), opened: false, is_whole: true }
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
                if !self.is_whole {
                    return Ok(None);
                }
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
        read_up_to(&mut self.source, &mut self.element, b",]")?.ok_or(Error::Form(CUT_OFF))?;
        Ok(Some(&self.element))
    }
}

/// Reads up to, not including, one of the bytes that end a value, outside of brackets and strings. None where the source
/// ends first.
fn read_up_to(source: &mut impl BufRead, text: &mut Vec<u8>, ends: &[u8]) -> Result<Option<()>, Error> {
    text.clear();
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    loop {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
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
                byte if depth == 0 && ends.contains(byte) => {
                    end = Some(at);
                    break;
                }
                _ => {}
            }
        }
        let taken = end.unwrap_or(buffer.len());
        text.extend_from_slice(&buffer[..taken]);
        source.consume(taken);
        if end.is_some() {
            return Ok(Some(()));
        }
    }
}

/// The fields of a JSON object, one by one: a name, then its value in one piece or element by element.
pub(super) struct Fields<R> {
    source: R,
    text: Vec<u8>,
    opened: bool,
}

impl<R: BufRead> Fields<R> {
    /// Takes a source whose next byte is the opening bracket.
    pub(super) fn new(source: R) -> Self {
        Self { source, text: Vec::new(), opened: false }
    }

    /// Returns the text of the next field's name, quotes included, `None` after the closing bracket. The value is next.
    pub(super) fn next_name(&mut self) -> Result<Option<&[u8]>, Error> {
        let is_first = !self.opened;
        if is_first {
            self.source.consume(1);
            self.opened = true;
        }
        match first_byte(&mut self.source)?.ok_or(Error::Form(OBJECT_CUT_OFF))? {
            b'}' => {
                self.source.consume(1);
                return match first_byte(&mut self.source)? {
                    None => Ok(None),
                    Some(_) => Err(Error::Form(AFTER_OBJECT)),
                };
            }
            b',' if !is_first => {
                self.source.consume(1);
                first_byte(&mut self.source)?;
            }
            _ if is_first => {}
            _ => return Err(Error::Form("there is no comma between this field of the object and the one before")),
        }
        read_up_to(&mut self.source, &mut self.text, b":")?.ok_or(Error::Form(OBJECT_CUT_OFF))?;
        self.source.consume(1);
        Ok(Some(&self.text))
    }

    /// Returns whether the value is an array.
    pub(super) fn is_array(&mut self) -> Result<bool, Error> {
        Ok(first_byte(&mut self.source)? == Some(b'['))
    }

    /// Returns the text of the value.
    pub(super) fn value(&mut self) -> Result<&[u8], Error> {
        read_up_to(&mut self.source, &mut self.text, b",}")?.ok_or(Error::Form(OBJECT_CUT_OFF))?;
        Ok(&self.text)
    }

    /// Goes into the value, an array.
    pub(super) fn into_elements(self) -> Elements<R> {
        Elements { source: self.source, element: self.text, opened: false, is_whole: false }
    }
}

impl<R> Elements<R> {
    /// Goes on with the object around the array, after its last element.
    pub(super) fn into_fields(self) -> Fields<R> {
        Fields { source: self.source, text: self.element, opened: true }
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
