//! After an adapter is written: does the folder hold what was trained, and does it change the model at all?

use std::path::Path;

use tch::Tensor;

use super::adapter_file;
use super::decoder::{Decoder, Extras};
use super::lora::Lora;
use super::pack::{Pack, Want};
use crate::error::{Error, Result};
use crate::text::Sequence;

/// Reads an adapter folder as any program would and compares the logits after one sequence's last token: those of the
/// folder must be those of the adapter in memory. Returns by how much the folder's differ most from the base model's.
///
/// # Errors
/// The folder cannot be read, or computes something else.
pub fn check(dir: &Path, trained: &Lora, decoder: &Decoder, sequence: &Sequence) -> Result<f64> {
    let written = adapter_file::load(dir, &decoder.config, &decoder.fingerprint, decoder.device)?;
    let pack = Pack::new(&[vec![(sequence, Want::LOG_PROB)]], decoder.device);
    let logits = |adapter: Option<&Lora>| {
        tch::no_grad(|| {
            let hidden = decoder.forward(&pack, Extras { adapter, ..Extras::default() });
            decoder.head().logits(&hidden.narrow(0, hidden.size()[0] - 1, 1))
        })
    };
    let largest = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    let (of_folder, of_memory) = (logits(Some(&written)), logits(Some(trained)));
    let apart = largest(&of_folder, &of_memory);
    let tolerance = 1e-4 * of_memory.abs().max().double_value(&[]);
    // A NaN is no agreement.
    if !(apart <= tolerance && tolerance.is_finite()) {
        return Err(Error::model(
            dir,
            format!("the adapter that was written computes other logits than the one that was trained, by {apart:.1e}"),
        ));
    }
    Ok(largest(&of_folder, &logits(None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::folder;
    use tch::{Device, Kind};

    #[test]
    fn a_folder_that_holds_another_adapter_is_found_out() {
        let decoder = Decoder::load(&folder("tied"), Kind::Float, Device::Cpu).unwrap();
        let config = super::super::lora::LoraConfig {
            r: 2,
            alpha: 4.0,
            dropout: 0.0,
            targets: super::super::lora::Module::ALL.into_iter().collect(),
        };
        let adapter = Lora::fresh(config, &decoder.config, 1, Device::Cpu);
        let sequence = Sequence { tokens: vec![1, 5, 9], scored: vec![2], kl: vec![1], prompt_len: 1, cut: 0 };
        let dir = tempfile::tempdir().unwrap();
        let save = || adapter_file::save(&adapter, dir.path(), "base", &decoder.fingerprint).unwrap();
        save();
        assert_eq!(check(dir.path(), &adapter, &decoder, &sequence).unwrap(), 0.0, "a fresh adapter changes nothing");

        let fill = |value: f64| {
            for (name, tensor) in adapter.named_parameters() {
                if name.contains("lora_B") {
                    let _ = tch::no_grad(|| tensor.shallow_clone().fill_(value));
                }
            }
        };
        fill(0.3);
        // The fresh one is still in the folder.
        let error = check(dir.path(), &adapter, &decoder, &sequence).unwrap_err().to_string();
        assert!(error.contains("other logits"), "{error}");
        save();
        assert!(check(dir.path(), &adapter, &decoder, &sequence).unwrap() > 1e-3);

        fill(f64::NAN);
        save();
        assert!(check(dir.path(), &adapter, &decoder, &sequence).is_err(), "NaN equals nothing");
    }
}
