//! The run's curves as a TensorBoard event file: TFRecord framing around protobuf events, written here because no
//! maintained library does.
//!
//! A record is its length (8 bytes, little endian), the masked CRC-32C of the length, an `Event`, and the masked CRC-32C of
//! that. On resume, events after the checkpoint are cut off as the lines of `metrics.jsonl` are.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use prost::Message;

use super::metrics::{Figures, Speed, StepMetrics};
use crate::error::{Error, Result};

/// TensorBoard finds event files by this part of their name.
const FILE: &str = "events.out.tfevents.0.trace";
/// First event of every file.
const VERSION: &str = "brain.Event:2";
/// Longer records are none of ours.
const LONGEST_RECORD: u64 = 1 << 20;

/// The fields of TensorFlow's `Event` that are used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// One point of a curve.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The open event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens a run's event file, keeping the events up to a step.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(run_dir: &Path, steps: u64) -> Result<Self> {
        let path = run_dir.join(FILE);
        let io = |e: std::io::Error| Error::model(&path, e.to_string());
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e)),
        };
        let mut kept = framed(&Event { wall_time: now(), file_version: Some(VERSION.into()), ..Event::default() });
        let is_kept = |event: &Event| event.summary.is_some() && event.step <= steps as i64;
        kept.extend(events(&bytes).iter().filter(|event| is_kept(event)).flat_map(framed));
        shared::output::write_atomic(&path, &kept)?;
        let file = File::options().append(true).open(&path).map_err(io)?;
        Ok(EventFile { path, file })
    }

    /// Appends one step.
    ///
    /// # Errors
    /// The file cannot be written, e.g. the disk is full.
    pub fn append(&mut self, metrics: &StepMetrics, speed: &Speed) -> Result<()> {
        self.append_scalars(metrics.figures.step, scalars(&of_step(metrics, speed)))
    }

    /// Appends one validation.
    ///
    /// # Errors
    /// The file cannot be written, e.g. the disk is full.
    pub fn append_validation(&mut self, metrics: &Figures) -> Result<()> {
        self.append_scalars(metrics.step, scalars(&of_validation(metrics)))
    }

    fn append_scalars(&mut self, step: u64, value: Vec<Scalar>) -> Result<()> {
        let summary = Some(Summary { value });
        let event = Event { wall_time: now(), step: step as i64, file_version: None, summary };
        self.file.write_all(&framed(&event)).map_err(|e| Error::model(&self.path, e.to_string()))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn of_step(metrics: &StepMetrics, speed: &Speed) -> [(&'static str, Option<f64>); 13] {
    let figures = &metrics.figures;
    [
        ("loss/total", Some(figures.loss)),
        ("loss/L_I", Some(figures.loss_invert)),
        ("loss/L_II", Some(figures.loss_punish)),
        ("loss/L_KL", Some(figures.loss_kl)),
        ("loss/NLL", Some(figures.loss_nll)),
        ("loss/replay", metrics.loss_replay),
        ("preference/margin", figures.margin),
        ("preference/accuracy", figures.accuracy),
        ("KL", figures.kl),
        ("gradient norm", Some(metrics.grad_norm)),
        ("learning rate", Some(metrics.learning_rate)),
        ("speed/tokens per s", Some(speed.tokens_per_s)),
        ("speed/peak GiB", Some(speed.peak_gib)),
    ]
}

fn of_validation(metrics: &Figures) -> [(&'static str, Option<f64>); 8] {
    [
        ("validation/loss/total", Some(metrics.loss)),
        ("validation/loss/L_I", Some(metrics.loss_invert)),
        ("validation/loss/L_II", Some(metrics.loss_punish)),
        ("validation/loss/L_KL", Some(metrics.loss_kl)),
        ("validation/loss/NLL", Some(metrics.loss_nll)),
        ("validation/margin", metrics.margin),
        ("validation/accuracy", metrics.accuracy),
        ("validation/KL", metrics.kl),
    ]
}

fn scalars(values: &[(&str, Option<f64>)]) -> Vec<Scalar> {
    let scalar =
        |(tag, value): &(&str, Option<f64>)| Some(Scalar { tag: (*tag).into(), simple_value: Some((*value)? as f32) });
    values.iter().filter_map(scalar).collect()
}

/// The checksum as TFRecord stores it, so that a checksum of data that holds checksums is no special one.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn framed(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), &data, &masked_crc(&data)].concat()
}

/// Reads the events of a file up to the first record that is torn or damaged.
fn events(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let data_length = u64::from_le_bytes(*length);
        let whole = rest.len() as u64 >= 8 && data_length <= (rest.len() as u64 - 8).min(LONGEST_RECORD);
        if !whole || rest[..4] != masked_crc(length) {
            break;
        }
        let (data, rest) = rest[4..].split_at(data_length as usize);
        let Some(event) = (rest[..4] == masked_crc(data)).then(|| Event::decode(data).ok()).flatten() else { break };
        events.push(event);
        bytes = &rest[4..];
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        let figures = Figures { step, loss: 0.5 / step as f64, margin: Some(1.5), ..Figures::default() };
        StepMetrics { figures, learning_rate: 1e-4, ..StepMetrics::default() }
    }

    const SPEED: Speed =
        Speed { step: 0, seconds: 0.5, tokens_per_s: 100.0, peak_gib: 1.25, checkpoint_wait_seconds: None };

    #[test]
    fn checksums_are_those_of_the_format() {
        // CRC-32C of "123456789" is e3069283, by its definition.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), (0x2507_c60du32.wrapping_add(0xa282_ead8)).to_le_bytes());
    }

    #[test]
    fn a_resumed_file_has_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::open(dir.path(), 0).unwrap();
        (1..=5).for_each(|step| file.append(&metrics(step), &SPEED).unwrap());
        drop(file);
        // Cut in the middle of a record, as a full disk does.
        let path = dir.path().join(FILE);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let mut file = EventFile::open(dir.path(), 3).unwrap();
        (4..=6).for_each(|step| file.append(&metrics(step), &SPEED).unwrap());
        let events = events(&std::fs::read(&path).unwrap());
        assert_eq!(events[0].file_version.as_deref(), Some(VERSION));
        assert_eq!(events[1..].iter().map(|event| event.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        let of = |tag: &str| {
            let values = &events[2].summary.as_ref().unwrap().value;
            values.iter().find(|scalar| scalar.tag == tag).and_then(|scalar| scalar.simple_value)
        };
        assert_eq!(
            (of("loss/total"), of("preference/margin"), of("speed/peak GiB")),
            (Some(0.25), Some(1.5), Some(1.25))
        );
        assert_eq!((of("loss/L_II"), of("loss/replay")), (Some(0.0), None), "a zero is a value");
    }

    #[test]
    fn damaged_bytes_end_the_reading_and_nothing_else() {
        let whole = framed(&Event { step: 7, ..Event::default() });
        for cut in 0..whole.len() {
            assert!(events(&whole[..cut]).is_empty());
            let mut damaged = whole.clone();
            damaged[cut] ^= 0x40;
            assert!(events(&damaged).is_empty(), "{cut}");
        }
        assert_eq!(events(&[&whole[..], &[0xff; 40]].concat()).len(), 1);
    }
}
