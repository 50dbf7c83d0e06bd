//! The memory that the ranks of a communicator share: a table of who is where, and room for each rank's numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

/// Ranks at most.
pub const RANKS: usize = 8;
/// Bytes of a rank's room.
const ROOM: usize = 16 << 20;
const TABLE: usize = 4096;

/// What a rank says of the collective it is at. All must say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Said {
    pub call: u64,
    pub count: u64,
    pub kind: u64,
    pub op: u64,
    pub root: u64,
}

/// One rank's line of the table.
#[repr(C)]
struct Line {
    /// How many meetings it has come to.
    come: AtomicU64,
    said: Said,
}

/// The memory, mapped into this process.
pub struct Shared {
    map: MmapRaw,
    pub rank: usize,
    pub world_size: usize,
    /// This side has given the communicator up.
    pub aborted: Arc<AtomicBool>,
}

/// This side has given up, or the memory is not there.
pub struct Gone;

impl Shared {
    /// Maps the memory of a name, which the first to come makes.
    pub fn open(name: &str, rank: usize, world_size: usize) -> std::io::Result<Shared> {
        let path = format!("/dev/shm/{name}");
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len((TABLE + RANKS * ROOM) as u64)?;
        let map = MmapOptions::new().map_raw(&file)?;
        Ok(Shared { map, rank, world_size, aborted: Arc::default() })
    }

    fn line(&self, rank: usize) -> *mut Line {
        assert!(rank < RANKS, "rank {rank} of {RANKS} at most");
        // SAFETY: the table has room for a line of every rank.
        unsafe { self.map.as_mut_ptr().cast::<Line>().add(rank) }
    }

    /// Returns a rank's room.
    pub fn room(&self, rank: usize, bytes: usize) -> *mut u8 {
        assert!(rank < RANKS && bytes <= ROOM, "{bytes} bytes of {ROOM} at most");
        // SAFETY: the rooms lie behind the table.
        unsafe { self.map.as_mut_ptr().add(TABLE + rank * ROOM) }
    }

    /// Says what this rank does; to be read after the next meeting.
    pub fn say(&self, said: Said) {
        // SAFETY: a rank writes its own line alone, and others read it between two meetings.
        unsafe { (*self.line(self.rank)).said = said };
    }

    /// Returns what a rank has said.
    pub fn said(&self, rank: usize) -> Said {
        // SAFETY: as above.
        unsafe { (*self.line(rank)).said }
    }

    /// Returns when all ranks have come as often as this one.
    pub fn meet(&self) -> Result<(), Gone> {
        // SAFETY: lines are valid, and this part of them is atomic.
        let come = |rank: usize| unsafe { &(*self.line(rank)).come };
        let own = come(self.rank).fetch_add(1, Ordering::SeqCst) + 1;
        for rank in 0..self.world_size {
            while come(rank).load(Ordering::SeqCst) < own {
                if self.aborted.load(Ordering::SeqCst) {
                    return Err(Gone);
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        Ok(())
    }
}
