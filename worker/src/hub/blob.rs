//! What the hub says of a file, and whether what came is it.
//!
//! The hub names blobs by hash: large files by the SHA-256 of their bytes, others by git's SHA-1 of a blob.

use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A file's size and hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name in `blobs`.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

impl BlobInfo {
    /// Reads the etag and the length as the hub's headers give them.
    ///
    /// # Errors
    /// The etag is not a hash: nothing could be checked.
    pub fn of(etag: &str, size: u64) -> Result<BlobInfo, String> {
        let bare = etag.trim().trim_start_matches("W/").trim_matches('"');
        let is_hash = matches!(bare.len(), 40 | 64) && bare.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hash {
            return Err(format!("its etag {etag:?} is no SHA-1 or SHA-256, so the file could not be checked"));
        }
        Ok(BlobInfo { etag: bare.to_ascii_lowercase(), size })
    }

    /// Returns whether a file has these bytes; reads all of it.
    pub fn is(&self, file: &Path) -> std::io::Result<bool> {
        let mut input = std::fs::File::open(file)?;
        let size = input.metadata()?.len();
        if size != self.size {
            return Ok(false);
        }
        let found = if self.etag.len() == 64 {
            hash(Sha256::new(), &mut input)?
        } else {
            hash(Sha1::new_with_prefix(format!("blob {size}\0")), &mut input)?
        };
        Ok(found == self.etag)
    }
}

fn hash<D: Digest>(mut hasher: D, input: &mut impl Read) -> std::io::Result<String> {
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match input.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_are_those_of_git_and_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "hello\n").unwrap();
        for etag in [
            "\"ce013625030ba8dba906f756967f9e9ca394464a\"",
            "W/\"ce013625030ba8dba906f756967f9e9ca394464a\"",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            assert!(BlobInfo::of(etag, 6).unwrap().is(&file).unwrap(), "{etag}");
            assert!(!BlobInfo::of(etag, 7).unwrap().is(&file).unwrap(), "{etag}");
        }
        assert!(!BlobInfo::of(&"0".repeat(64), 6).unwrap().is(&file).unwrap());
        assert!(BlobInfo::of("\"../../x\"", 6).is_err());
    }
}
