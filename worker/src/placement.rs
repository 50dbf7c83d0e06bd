//! Where tensors live, in which type, and how they get there: the one place that tells a processor from a GPU.
//!
//! Every choice is a function of the device alone, so that what a GPU would do is compiled everywhere and can be asked for
//! on the CPU, in tests, too. What is not decided here is the same on both.

use std::str::FromStr;

use tch::kind::Element;
use tch::{Cuda, Device, Kind, Tensor};

use crate::determinism;
use crate::error::{Error, Result};
use crate::model::config::AttentionRule;

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The first CUDA device, if libtorch finds one; else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is no device; expected auto, cpu, cuda or cuda:N");
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Choice::Cuda).ok_or_else(wrong),
        }
    }
}

/// Returns a device's name as `--device` takes it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".to_owned(),
    }
}

/// Returns the device that is meant, where so many CUDA devices are there.
///
/// # Errors
/// There is no such CUDA device; says what to do.
fn chosen(choice: Choice, cuda_devices: usize) -> std::result::Result<Device, String> {
    match choice {
        Choice::Cpu => Ok(Device::Cpu),
        Choice::Auto if cuda_devices == 0 => Ok(Device::Cpu),
        Choice::Auto => Ok(Device::Cuda(0)),
        Choice::Cuda(n) if n < cuda_devices => Ok(Device::Cuda(n)),
        Choice::Cuda(n) if cuda_devices == 0 => Err(format!(
            "--device cuda:{n}: this build finds no CUDA device. It needs libtorch with CUDA (deploy/libtorch.sh --cuda, \
             then cargo build again), an NVIDIA driver (nvidia-smi lists the devices) and a CUDA_VISIBLE_DEVICES that \
             hides none; --device cpu computes on the processor"
        )),
        Choice::Cuda(n) => {
            Err(format!("--device cuda:{n}: there are {cuda_devices} CUDA devices here, numbered from 0 (nvidia-smi)"))
        }
    }
}

/// Returns how many CUDA devices libtorch finds here; 0 in a build for the CPU.
pub fn cuda_devices() -> usize {
    usize::try_from(Cuda::device_count()).unwrap_or(0)
}

/// Returns the device that is meant on this machine.
///
/// # Errors
/// There is no such CUDA device.
pub fn device(choice: Choice) -> Result<Device> {
    // Nobody who wants the processor has to have a driver that answers.
    let devices = if choice == Choice::Cpu { 0 } else { cuda_devices() };
    chosen(choice, devices).map_err(Error::Config)
}

/// Returns the type in which weights of a type are held, and products of it computed, on a device: f32 where there are no
/// fast bf16 products.
pub fn held_as(dtype: Kind, device: Device) -> Kind {
    if dtype == Kind::BFloat16 && !native_bf16(device) { Kind::Float } else { dtype }
}

/// Returns whether libtorch has fast bf16 products on this device; its fallback on old processors is hundreds of
/// times slower than f32.
pub fn native_bf16(device: Device) -> bool {
    if device != Device::Cpu {
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// How attention within a block is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Matrix products and a softmax, written out; the softmax's result is kept for the way back.
    Products,
    /// libtorch's fused kernel, which keeps no scores.
    Fused,
}

/// Returns the kernel of a device: on the CPU the fused one takes twice as long forward and seven times as long backward
/// at the lengths of a pair, and on CUDA some of its ways back add up in a changing order.
pub fn kernel(device: Device) -> Kernel {
    if device.is_cuda() && !determinism::is_on() { Kernel::Fused } else { Kernel::Products }
}

impl Kernel {
    /// Returns the kernel that can compute a rule: the fused one knows no soft-cap.
    pub fn able(self, rule: AttentionRule) -> Kernel {
        if rule.softcap.is_some() { Kernel::Products } else { self }
    }
}

/// How host memory reaches a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    /// Copied before the call returns; nothing is copied where the device is the host.
    Plain,
    /// From page-locked memory, in the order of the device's stream: nobody waits.
    Pinned,
}

fn transfer(device: Device) -> Transfer {
    if device.is_cuda() { Transfer::Pinned } else { Transfer::Plain }
}

/// Brings host values to a device: [values.len()], of the values' type. Does not wait for a GPU.
pub fn upload<T: Element>(values: &[T], device: Device) -> Tensor {
    bring(Tensor::from_slice(values), device, transfer(device))
}

fn bring(host: Tensor, device: Device, transfer: Transfer) -> Tensor {
    let kind = host.kind();
    match transfer {
        Transfer::Plain => host.to_device(device),
        Transfer::Pinned => {
            // Page-locked memory is limited on some machines: a copy that waits does as well.
            let staged = host.f_pin_memory(device).unwrap_or(host);
            staged.to_device_(device, kind, true, false)
        }
    }
}

/// Waits until a device has done all that it was told; for measurements.
pub fn finish(device: Device) {
    if let Device::Cuda(n) = device {
        Cuda::synchronize(n as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own, since the switch is the process's.
    #[test]
    fn deterministic_kernels_are_switched_on_for_the_whole_process() {
        const ALONE: &str = "TRACE_TEST_DETERMINISTIC";
        if std::env::var_os(ALONE).is_some() {
            assert!(!determinism::is_on());
            determinism::switch_on().unwrap();
            assert!(determinism::is_on());
            assert_eq!(kernel(Device::Cuda(0)), Kernel::Products);
            // What has such a kernel goes on.
            let mut sums = Tensor::zeros([2], (Kind::Float, Device::Cpu));
            let _ = sums.index_add_(0, &Tensor::from_slice(&[1i64, 1]), &Tensor::from_slice(&[1f32, 2.0]));
            assert_eq!(Vec::<f32>::try_from(&sums).unwrap(), [0.0, 3.0]);
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "placement::tests::deterministic_kernels_are_switched_on_for_the_whole_process";
        let output =
            again.args(["--exact", name]).env(ALONE, "1").env("CUBLAS_WORKSPACE_CONFIG", ":4096:8").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn a_device_is_named_and_refused_with_what_to_do() {
        let of = |text: &str, devices| text.parse::<Choice>().and_then(|choice| chosen(choice, devices));
        assert_eq!(of("auto", 0), Ok(Device::Cpu));
        assert_eq!(of("auto", 2), Ok(Device::Cuda(0)));
        assert_eq!(of("cpu", 2), Ok(Device::Cpu));
        assert_eq!(of("cuda", 1), Ok(Device::Cuda(0)));
        assert_eq!(of("cuda:1", 2), Ok(Device::Cuda(1)));
        assert!(of("cuda:2", 2).unwrap_err().contains("there are 2 CUDA devices"));
        assert!(of("cuda", 0).unwrap_err().contains("deploy/libtorch.sh --cuda"));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "CPU"] {
            assert!(of(wrong, 1).unwrap_err().contains("expected auto, cpu, cuda or cuda:N"), "{wrong}");
        }
        for device in [Device::Cpu, Device::Cuda(3)] {
            assert_eq!(of(&name(device), 4), Ok(device));
        }
    }

    #[test]
    fn a_gpu_gets_its_own_types_kernels_and_transfers() {
        let gpu = Device::Cuda(0);
        assert_eq!(held_as(Kind::BFloat16, gpu), Kind::BFloat16);
        assert_eq!(held_as(Kind::Float, gpu), Kind::Float);
        assert_eq!((kernel(gpu), kernel(Device::Cpu)), (Kernel::Fused, Kernel::Products));
        assert_eq!((transfer(gpu), transfer(Device::Cpu)), (Transfer::Pinned, Transfer::Plain));
        let rule = AttentionRule { scale: 1.0, softcap: None, window: Some(3) };
        assert_eq!(Kernel::Fused.able(rule), Kernel::Fused);
        assert_eq!(Kernel::Fused.able(AttentionRule { softcap: Some(50.0), ..rule }), Kernel::Products);
    }

    #[test]
    fn every_transfer_brings_the_same_values() {
        let values: Vec<f32> = (0..100).map(|i| i as f32 / 7.0).collect();
        for transfer in [Transfer::Plain, Transfer::Pinned] {
            let there = bring(Tensor::from_slice(&values), Device::Cpu, transfer);
            assert_eq!(Vec::<f32>::try_from(&there).unwrap(), values, "{transfer:?}");
            assert_eq!(bring(Tensor::from_slice::<i64>(&[]), Device::Cpu, transfer).numel(), 0);
        }
        assert_eq!(Vec::<i64>::try_from(&upload(&[3i64, 4], Device::Cpu)).unwrap(), [3, 4]);
    }
}
