//! A damaged log: set aside whole, and a new one made of its whole lines.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::line::{self, Change};
use super::unused;
use crate::error::{Error, Result};
use crate::output::AtomicFile;

/// What became of a damaged store.
#[derive(Debug)]
pub struct Salvaged {
    /// Where the damaged log and its index lie now.
    pub set_aside: PathBuf,
    /// Commits that are whole.
    pub kept: u64,
    /// What is lost, in order.
    pub lost: Vec<Lost>,
}

/// A damaged stretch of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Line of the log, from 1.
    pub line: u64,
    /// Where it begins.
    pub byte: u64,
    /// Its length.
    pub bytes: u64,
    /// Numbers of the commits that were there.
    pub commits: RangeInclusive<u64>,
    /// Trees and keys that can still be read in it.
    pub keys: Vec<(String, String)>,
}

/// Sets the log of a store aside and makes a new one of its whole lines. A death on the way leaves the store as it was,
/// at most without its index.
pub(super) fn salvage(folder: &Path) -> Result<Salvaged> {
    let path = folder.join("log");
    let set_aside = unused(folder, "set-aside");
    std::fs::create_dir(&set_aside).map_err(|source| Error::io("make", &set_aside, source))?;
    let rename = |from: &Path, to: PathBuf| std::fs::rename(from, to).map_err(|e| Error::io("set aside", from, e));
    rename(&folder.join("index"), set_aside.join("index"))?;
    std::fs::hard_link(&path, set_aside.join("log")).map_err(|source| Error::io("set aside", &path, source))?;
    let mut whole = AtomicFile::create(&path)?;
    let (kept, lost) = copy_whole_lines(&path, &mut whole)?;
    whole.finish()?;
    Ok(Salvaged { set_aside, kept, lost })
}

fn copy_whole_lines(path: &Path, to: &mut AtomicFile) -> Result<(u64, Vec<Lost>)> {
    let io = |source| Error::io("read", path, source);
    let mut log = BufReader::with_capacity(1 << 18, File::open(path).map_err(io)?);
    let (mut text, mut buffer) = (Vec::new(), Vec::new());
    let (mut kept, mut number, mut at, mut line_number) = (0, 0, 0, 0);
    let mut lost: Vec<Lost> = Vec::new();
    let mut open: Vec<Lost> = Vec::new();
    while log.read_until(b'\n', &mut text).map_err(io)? > 0 {
        line_number += 1;
        match line::read(&text).filter(|line| line.n > number) {
            Some(line) => {
                for mut stretch in open.drain(..) {
                    stretch.commits = number + 1..=line.n - 1;
                    lost.push(stretch);
                }
                number = line.n;
                kept += 1;
                let changes = line.c.iter().map(|(tree, key, value)| match value {
                    serde_json::Value::Null => Change::remove(tree, key),
                    value => Change::put(tree, key, value),
                });
                buffer.clear();
                line::write(&mut buffer, kept, &changes.collect::<Vec<_>>());
                to.write(&buffer)?;
            }
            // Its commits are known when the next whole line says its number.
            None => open.push(Lost {
                line: line_number,
                byte: at,
                bytes: text.len() as u64,
                commits: number + 1..=number,
                keys: line::names(&text),
            }),
        }
        at += text.len() as u64;
        text.clear();
    }
    // What stands open now is the torn end: nobody was told of it. But of several lines only the last can be torn.
    open.pop();
    lost.append(&mut open);
    Ok((kept, lost))
}
