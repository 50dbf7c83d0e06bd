//! What becomes of a panic: `tch` panics where libtorch refuses, above all for want of memory, and that is an error for
//! the user to read, not a bug of ours.

use std::panic::AssertUnwindSafe;

use crate::error::{Error, Result};

/// Runs `work`; a refusal of libtorch in it becomes an error. Any other panic is a bug and goes on.
///
/// # Errors
/// That of `work`, or libtorch's.
pub fn refusals_are_errors<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| match refusal(words(&*panic)) {
        Some(error) => Err(error),
        None => std::panic::resume_unwind(panic),
    })
}

/// As [`refusals_are_errors`], for a thread that must outlive its work: a bug, too, becomes an error.
///
/// # Errors
/// That of `work`, or what its panic says.
pub fn all_are_errors<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // A panic under `no_grad` leaves gradients switched off on its thread; the next piece of work has them on again.
    std::panic::catch_unwind(AssertUnwindSafe(|| tch::with_grad(work))).unwrap_or_else(|panic| {
        let words = words(&*panic);
        Err(refusal(words).unwrap_or_else(|| Error::Config(format!("a panic: {words}"))))
    })
}

/// Keeps the message and the backtrace of libtorch's refusals off standard error, unless RUST_BACKTRACE asks for them:
/// call it once, from `main`.
pub fn print_bugs_only() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if refusal(text).is_none() {
            default(panic);
        }
    }));
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// Returns libtorch's refusal of which a panic speaks: `called … on an `Err` value: Torch("REASON\nbacktrace…")`.
fn refusal(panic: &str) -> Option<Error> {
    let (_, quoted) = panic.split_once("Torch(\"")?;
    let reason = quoted.split("\\n").next().unwrap_or(quoted).trim_end_matches("\")");
    if !reason.contains("can't allocate memory") && !reason.contains("out of memory") {
        return Some(Error::Device(format!("libtorch: {reason} (RUST_BACKTRACE=1 shows where)")));
    }
    let bytes = reason.split_once("tried to allocate ").and_then(|(_, rest)| rest.split(' ').next());
    let wanted = bytes.and_then(|bytes| bytes.parse::<f64>().ok()).map(|bytes| bytes / f64::from(1 << 30));
    let wanted = wanted.map_or(String::new(), |gib| format!(": {gib:.1} GiB more were asked for"));
    Some(Error::Device(format!(
        "not enough memory{wanted}; use fewer tokens at a time (--pack-tokens, --batch-size, --max-length, \
         --max-new-tokens), --dtype bf16, or a smaller model"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    /// More than any address space holds.
    fn too_much() -> Tensor {
        Tensor::zeros([1i64 << 50], (Kind::Double, Device::Cpu))
    }

    #[test]
    fn memory_that_is_not_there_is_an_error_in_one_line() {
        let error = refusals_are_errors(|| Ok(too_much())).unwrap_err().to_string();
        assert!(error.starts_with("not enough memory: 8388608.0 GiB more were asked for; "), "{error}");
        assert!(!error.contains('\n') && !error.contains("\\n"), "{error}");
        assert!(all_are_errors(|| Ok(too_much())).unwrap_err().to_string().starts_with("not enough memory"));
    }

    #[test]
    fn another_refusal_is_given_in_libtorchs_words() {
        let made = || Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).view([7]);
        let error = refusals_are_errors(|| Ok(made())).unwrap_err().to_string();
        assert!(error.starts_with("libtorch: shape '[7]' is invalid"), "{error}");
    }

    #[test]
    fn a_bug_stays_a_panic_except_where_the_thread_must_live() {
        let bug = || -> Result<()> { tch::no_grad(|| panic!("a broken invariant")) };
        assert!(std::panic::catch_unwind(|| refusals_are_errors(bug)).is_err());
        assert_eq!(all_are_errors(bug).unwrap_err().to_string(), "a panic: a broken invariant");
        let root = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let next = all_are_errors(|| Ok((&root * 2.0).requires_grad())).unwrap();
        assert!(next, "the next piece of work has gradients");
    }
}
