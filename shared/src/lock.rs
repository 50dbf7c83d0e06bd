//! Files and folders that belong to one process at a time.
//!
//! The lock is the kernel's (flock): it goes with the process that holds it, however that ends. Whoever is refused
//! learns the holder's process id, where the system tells it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Takes an open file or folder for this process alone, until the file is closed. `instead` says what else the user
/// can do than wait: `choose another output`.
///
/// # Errors
/// Another process has it: the message names its id. Its file system has no such locks, or they cannot be had now, which may be
/// told from a lock that is held only by the words.
pub fn take(file: &File, path: &Path, instead: &str) -> Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let holder = holder(file).map_or("another process".to_owned(), |pid| format!("process {pid}"));
            Err(Error::InUse { file: path.to_owned(), holder, instead: instead.to_owned() })
        }
        Err(error) if never_locks(error) => Err(Error::io("lock (flock)", path, error.into())),
        // A lock service that is away: it may be back.
        Err(error) => {
            let holder = format!("another process, or its lock cannot be taken now ({error})");
            Err(Error::InUse { file: path.to_owned(), holder, instead: instead.to_owned() })
        }
    }
}

/// Returns whether an error of flock says that there are no locks at all, as on some mounts.
pub fn never_locks(error: Errno) -> bool {
    matches!(error, Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::BADF)
}

/// Returns the process that holds the lock on a file, as the kernel lists it.
fn holder(file: &File) -> Option<u32> {
    let data = file.metadata().ok()?;
    find_holder(&std::fs::read_to_string("/proc/locks").ok()?, data.dev(), data.ino())
}

/// Finds the holder in the kernel's list: `1: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF`, device in hexadecimal.
/// Some file systems report other device numbers there than to `stat`: the inode alone will do where it is unique.
fn find_holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut by_inode = Vec::new();
    for line in locks.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { continue };
        let mut place = place.split(':');
        let mut hex = || place.next().and_then(|part| u32::from_str_radix(part, 16).ok());
        let device = (hex(), hex());
        let (Some(found), Ok(pid)) = (place.next().and_then(|part| part.parse::<u64>().ok()), pid.parse()) else {
            continue;
        };
        if found == inode {
            if device == (Some(major), Some(minor)) {
                return Some(pid);
            }
            by_inode.push(pid);
        }
    }
    match by_inode[..] {
        [only] => Some(only),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:131 0 EOF\n2: FLOCK  ADVISORY  WRITE 41 08:02:131 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 42 08:01:131 0 EOF\n3: FLOCK  ADVISORY  WRITE 43 08:01:131 0 EOF\n";
        assert_eq!(find_holder(locks, rustix::fs::makedev(8, 1), 131), Some(43));
        assert_eq!(find_holder(locks, rustix::fs::makedev(9, 1), 131), None, "two candidates on other devices");
        assert_eq!(find_holder("3: FLOCK  ADVISORY  WRITE 43 00:1b:9 0 EOF", rustix::fs::makedev(0, 30), 9), Some(43));
        assert_eq!(find_holder("rubbish\n1: FLOCK", 0, 1), None);
    }

    #[test]
    fn a_second_taker_is_refused_by_name_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = File::create(&path).unwrap();
        take(&first, &path, "choose another").unwrap();
        let second = File::open(&path).unwrap();
        let error = take(&second, &path, "choose another").unwrap_err().to_string();
        assert!(error.contains("is in use by") && error.ends_with("or choose another"), "{error}");
        if std::fs::read_to_string("/proc/locks").is_ok_and(|locks| !locks.is_empty()) {
            assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        }
        drop(first);
        take(&second, &path, "choose another").unwrap();
    }

    #[test]
    fn what_cannot_be_locked_is_not_said_to_be_in_use() {
        // A path alone is no open file to the kernel.
        let path = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let error = take(&File::from(path), Path::new("/"), "choose another").unwrap_err().to_string();
        assert!(error.contains("lock") && !error.contains("in use"), "{error}");
    }
}
