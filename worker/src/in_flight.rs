//! What is being computed, noted so that the note outlives the process: a step, pack or batch that ends three attempts in a
//! row is named, with its records, instead of being tried for ever.
//!
//! The note is a small file beside the run or the journal. Before each piece of work it is overwritten in place, by one write
//! and without a sync: what a killed process wrote is still there. An attempt that ends otherwise (done, told to stop, an error
//! of its own) takes the note back. So a piece that the next attempt finds there ended the last one. In a gang the first rank
//! has the file; it leaves the note, too, where another member died or hung while the ranks computed a step together,
//! since any of them may have died of its records. One that ends by an error of its own excuses the piece by an empty file beside
//! the note. Deaths by other causes count as well; they seldom come three times at one place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fence;

/// So many attempts may die in one piece.
const DEATHS: u32 = 3;
/// Records that a note names at most.
const NAMED: usize = 256;

/// What kind of work a piece is; of one number, the first kind comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An update.
    Step,
    /// The validation after an update.
    Validation,
    /// A pack of scoring.
    Pack,
    /// A batch of generation.
    Batch,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Kind::Step => "step",
            Kind::Validation => "the validation after step",
            Kind::Pack => "pack",
            Kind::Batch => "batch",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Kind::Step | Kind::Pack => "remove the record at fault, or lower --pack-tokens or --max-length",
            Kind::Validation => "lower --pack-tokens",
            Kind::Batch => "remove the record at fault, or lower --batch-size or --max-new-tokens",
        }
    }
}

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    kind: Kind,
    number: u64,
    /// Indices in the file of records.
    records: Vec<usize>,
}

impl Piece {
    fn order(&self) -> (u64, Kind) {
        (self.number, self.kind)
    }
}

/// A piece in which attempts died, the last ones in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Suspect {
    piece: Piece,
    deaths: u32,
}

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Of the work: a note of other work says nothing.
    key: String,
    at: Option<Piece>,
    suspect: Option<Suspect>,
}

/// The file beside a note that excuses the piece of the attempt that ended last.
fn excuse_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".excused");
    name.into()
}

/// Returns what an attempt has to suspect, by the note that the one before left.
fn suspect(left: Note) -> Option<Suspect> {
    let Some(piece) = left.at else { return left.suspect };
    let before = left.suspect.filter(|suspect| suspect.piece.order() == piece.order());
    Some(Suspect { piece, deaths: 1 + before.map_or(0, |suspect| suspect.deaths) })
}

/// Returns the suspect when a piece begins: one that lies behind is none any more.
fn still_suspect(suspect: Option<Suspect>, now: &Piece) -> Option<Suspect> {
    suspect.filter(|suspect| now.order() <= suspect.piece.order())
}

/// The note of one attempt at a piece of work.
#[derive(Debug, Default)]
pub struct InFlight {
    path: PathBuf,
    key: String,
    /// Where this process keeps no note, there is no path.
    is_kept: bool,
    suspect: Option<Suspect>,
    /// Opened with the first piece.
    file: Option<File>,
    /// Bytes of the longest note so far: shorter ones are filled up.
    length: usize,
    /// The note stays as it is.
    stays: bool,
    is_done: bool,
}

impl InFlight {
    /// For a member of a gang that is not the first: keeps no note.
    pub fn unkept() -> InFlight {
        InFlight::default()
    }

    /// Says, of a member of a gang that is not the first, that it ends by an error of its own and not of the piece: the first one
    /// sees only that it is gone. One of an attempt that was left behind may so excuse a step of the next: one death less is
    /// counted.
    pub fn excuse(path: &Path) {
        let excuse = excuse_of(path);
        if let Err(error) = File::create(&excuse) {
            tracing::warn!("{}: {error}; the step counts as one in which an attempt died", excuse.display());
        }
    }

    /// Reads what the attempt before left. `key` is the work's; `records` is the file that is named.
    ///
    /// # Errors
    /// Three attempts in a row died in one piece, or the note cannot be written.
    pub fn open(path: &Path, key: &str, records: &Path) -> Result<InFlight> {
        // A note that was torn, or of a later version, says nothing.
        let mut left: Note =
            std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let is_excused = excuse_of(path).exists();
        if is_excused {
            left.at = None;
        }
        let suspect = if left.key == key { suspect(left) } else { None };
        if let Some(Suspect { piece, deaths }) = suspect.as_ref().filter(|suspect| suspect.deaths >= DEATHS) {
            let named = if piece.records.is_empty() { String::new() } else { format!(", records {:?}", piece.records) };
            return Err(Error::Config(format!(
                "{}: {deaths} attempts in a row died in {} {}{named}, and none got past it: {}. To try once more as it is, \
                 remove {}",
                records.display(),
                piece.kind.words(),
                piece.number,
                piece.kind.advice(),
                path.display()
            )));
        }
        let mut own = InFlight::unkept();
        (own.path, own.key, own.is_kept, own.suspect) = (path.to_owned(), key.to_owned(), true, suspect);
        if is_excused {
            own.write(None)?;
            let excuse = excuse_of(path);
            std::fs::remove_file(&excuse).map_err(|error| Error::model(&excuse, error.to_string()))?;
        }
        Ok(own)
    }

    /// Notes that a piece begins.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn at(&mut self, kind: Kind, number: u64, records: impl Iterator<Item = usize>) -> Result<()> {
        if !self.is_kept {
            return Ok(());
        }
        let piece = Piece { kind, number, records: records.take(NAMED).collect() };
        self.suspect = still_suspect(self.suspect.take(), &piece);
        self.write(Some(piece))
    }

    /// Leaves the note for the next attempt: this one ends because of the piece, as far as is known.
    pub fn leave(&mut self) {
        self.stays = true;
    }

    /// All pieces are done: there is nothing to tell any more.
    pub fn done(&mut self) {
        self.is_done = true;
    }

    fn write(&mut self, at: Option<Piece>) -> Result<()> {
        let note = Note { key: self.key.clone(), at, suspect: self.suspect.clone() };
        let mut line = serde_json::to_vec(&note).expect("a note is plain data");
        line.resize(line.len().max(self.length), b' ');
        self.length = line.len();
        let io = |error: std::io::Error| Error::model(&self.path, error.to_string());
        match &self.file {
            Some(file) => file.write_all_at(&line, 0).map_err(io),
            None => {
                // A new inode: what a frozen process of an older attempt may still note goes nowhere.
                shared::output::write_atomic(&self.path, &line)?;
                self.file = Some(File::options().write(true).open(&self.path).map_err(io)?);
                Ok(())
            }
        }
    }
}

/// An attempt that ends by itself takes its note back; a panic may be the piece's fault.
impl Drop for InFlight {
    fn drop(&mut self) {
        if self.stays || std::thread::panicking() {
            return;
        }
        match &self.file {
            // All was done before: the one that is there is an older attempt's.
            None if self.is_kept && self.is_done => drop(std::fs::remove_file(&self.path)),
            None => {}
            // One that another attempt has put in its place is left alone.
            Some(file) if self.is_done || self.suspect.is_none() => {
                let is_own = fence::is_named(&self.path, file).unwrap_or(false);
                let _ = is_own.then(|| std::fs::remove_file(&self.path));
            }
            Some(_) => drop(self.write(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(kind: Kind, number: u64) -> Piece {
        Piece { kind, number, records: vec![4, 9] }
    }

    fn note(at: Option<u64>, suspected: Option<(u64, u32)>) -> Note {
        let of = |number| piece(Kind::Step, number);
        let suspect = suspected.map(|(number, deaths)| Suspect { piece: of(number), deaths });
        Note { key: "k".into(), at: at.map(of), suspect }
    }

    #[test]
    fn deaths_count_in_a_row_at_one_piece() {
        let deaths = |left| suspect(left).map(|suspect| (suspect.piece.number, suspect.deaths));
        assert_eq!(deaths(note(None, None)), None);
        assert_eq!(deaths(note(Some(7), None)), Some((7, 1)));
        assert_eq!(deaths(note(Some(7), Some((7, 2)))), Some((7, 3)));
        assert_eq!(deaths(note(Some(5), Some((7, 2)))), Some((5, 1)), "a death elsewhere begins anew");
        assert_eq!(deaths(note(None, Some((7, 2)))), Some((7, 2)), "a stop in between changes nothing");
    }

    #[test]
    fn a_piece_that_lies_behind_is_no_suspect() {
        let suspected = Some(Suspect { piece: piece(Kind::Step, 7), deaths: 2 });
        for (now, is_still) in [
            (piece(Kind::Step, 5), true),
            (piece(Kind::Step, 7), true),
            (piece(Kind::Validation, 6), true),
            (piece(Kind::Validation, 7), false),
            (piece(Kind::Step, 8), false),
        ] {
            assert_eq!(still_suspect(suspected.clone(), &now).is_some(), is_still, "{now:?}");
        }
    }

    /// An attempt that begins so many pieces and dies, or ends by itself.
    fn attempt(path: &Path, pieces: std::ops::RangeInclusive<u64>, dies: bool) -> Result<()> {
        let mut own = InFlight::open(path, "k", Path::new("records.json"))?;
        for number in pieces {
            own.at(Kind::Pack, number, [1, number as usize].into_iter())?;
        }
        if dies {
            std::mem::forget(own);
        }
        Ok(())
    }

    #[test]
    fn three_attempts_that_died_at_one_piece_are_named_until_the_note_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in_flight");
        attempt(&path, 1..=12, true).unwrap();
        attempt(&path, 10..=12, true).unwrap();
        // Told to stop before it got there, or killed before its first piece.
        attempt(&path, 10..=11, false).unwrap();
        std::mem::forget(InFlight::open(&path, "k", Path::new("records.json")).unwrap());
        attempt(&path, 10..=12, true).unwrap();
        for _ in 0..2 {
            let said = attempt(&path, 10..=12, true).unwrap_err().to_string();
            for words in ["records.json", "pack 12", "records [1, 12]", "--pack-tokens", "in_flight"] {
                assert!(said.contains(words), "{said}");
            }
        }
        assert!(InFlight::open(&path, "other work", Path::new("r")).is_ok());
        std::fs::remove_file(&path).unwrap();
        attempt(&path, 10..=13, false).unwrap();
        assert!(!path.exists(), "nothing is left of an attempt that ended by itself");
        // One that died when all was done leaves a note, and the next has nothing to compute.
        attempt(&path, 1..=2, true).unwrap();
        InFlight::open(&path, "k", Path::new("r")).unwrap().done();
        assert!(!path.exists());
    }

    #[test]
    fn a_piece_that_is_excused_does_not_count_and_those_before_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in_flight");
        attempt(&path, 1..=4, true).unwrap();
        attempt(&path, 4..=4, true).unwrap();
        for _ in 0..3 {
            attempt(&path, 4..=4, true).unwrap();
            InFlight::excuse(&path);
        }
        attempt(&path, 4..=4, true).unwrap();
        let said = attempt(&path, 4..=4, true).unwrap_err().to_string();
        assert!(said.contains("3 attempts in a row died in pack 4"), "{said}");
        assert!(!excuse_of(&path).exists());
    }

    #[test]
    fn progress_in_between_and_torn_notes_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in_flight");
        for last in [4, 4, 5, 5, 4] {
            attempt(&path, 1..=last, true).unwrap();
        }
        std::fs::write(&path, "{\"key\": \"k\", \"at\": {\"kind\"").unwrap();
        attempt(&path, 1..=4, true).unwrap();
        let mut left = InFlight::open(&path, "k", Path::new("r")).unwrap();
        left.at(Kind::Pack, 4, std::iter::empty()).unwrap();
        left.leave();
        drop(left);
        attempt(&path, 4..=4, true).unwrap();
        assert!(attempt(&path, 4..=4, true).is_err());
        std::fs::remove_file(&path).unwrap();
        let mut last = InFlight::open(&path, "k", Path::new("r")).unwrap();
        last.at(Kind::Pack, 4, std::iter::empty()).unwrap();
        // Another attempt has the file now.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(last);
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
        let mut none = InFlight::unkept();
        none.at(Kind::Step, 1, std::iter::empty()).unwrap();
        none.done();
    }
}
