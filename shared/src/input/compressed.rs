//! Opens plain, gzip and xz files alike, by their first bytes.

use std::fs::File;
use std::io::{BufRead, BufReader, Chain, Cursor, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;

use super::BOM;
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 17;
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// Opens a file for buffered reading, decompressed, without a byte order mark.
///
/// The content decides, not the name; but a name that ends in `.gz` or `.xz` over other content is an error.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let is_folder = file.metadata().map_err(|source| Error::io("open", path, source))?.is_dir();
    if is_folder {
        return Err(Error::file(path, "is a folder; expected a file"));
    }
    let (start, file) = peeked(file, XZ.len()).map_err(|source| Error::io("read", path, source))?;
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    let plain: Box<dyn Read> = if start.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(file))
    } else if start.starts_with(XZ) {
        Box::new(XzDecoder::new_multi_decoder(file))
    } else if start.is_empty() {
        return Err(Error::file(path, "is empty"));
    } else {
        let name = path.to_string_lossy();
        for (ending, kind) in [(".gz", "gzip"), (".xz", "xz")] {
            if name.ends_with(ending) {
                return Err(Error::file(path, format!("is named {ending} but does not hold {kind} data; rename it")));
            }
        }
        Box::new(file)
    };
    let (start, plain) = peeked(plain, BOM.len()).map_err(|error| read_error(path, error))?;
    let skipped: &[u8] = if start == BOM { BOM } else { &[] };
    let mut plain = BufReader::with_capacity(BUFFER_BYTES, plain);
    std::io::copy(&mut plain.by_ref().take(skipped.len() as u64), &mut std::io::sink())
        .map_err(|error| read_error(path, error))?;
    Ok(Box::new(plain))
}

/// Reads a whole file, decompressed, without a byte order mark.
pub fn read_to_end(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|error| read_error(path, error))?;
    Ok(bytes)
}

/// Tells damaged content, which the user must replace, from a failing device.
pub(super) fn read_error(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other => {
            Error::file(path, format!("the compressed data is cut off or damaged ({error}); fetch the file again"))
        }
        _ => Error::io("read", path, error),
    }
}

type Peeked<R> = (Vec<u8>, Chain<Cursor<Vec<u8>>, R>);

fn peeked<R: Read>(mut source: R, length: usize) -> std::io::Result<Peeked<R>> {
    let mut start = Vec::with_capacity(length);
    source.by_ref().take(length as u64).read_to_end(&mut start)?;
    Ok((start.clone(), Cursor::new(start).chain(source)))
}
