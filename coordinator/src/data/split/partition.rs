//! Which record goes where: pure functions of sizes, categories and seed (spec 1.4).
//!
//! What is dealt are units: single records, or all records of one prompt. With single records every draw is the
//! reference's, in its order.

use shared::python_random::PythonRandom;
use shared::{Error, Result};

/// Indices of records that stay together.
pub(super) type Unit = Vec<usize>;

/// Record indices of the three parts, in output order; `train2` is a part of `train1`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub train1: Vec<usize>,
    pub train2: Vec<usize>,
    pub test: Vec<usize>,
}

/// How many records `train1` and `train2` get.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub train1: usize,
    pub train2: usize,
}

/// Splits without regard to categories.
pub(super) fn uniform(mut units: Vec<Unit>, sizes: Sizes, seed: u64) -> Result<Parts> {
    let total: usize = units.iter().map(Vec::len).sum();
    if sizes.train1 > total {
        return Err(Error::Config(format!("--train1-size {} exceeds the {total} usable records", sizes.train1)));
    }
    let mut generator = PythonRandom::new(seed);
    generator.shuffle(&mut units);
    let (train1, test) = cut(units, sizes.train1);
    if sizes.train2 > train1.len() {
        return Err(Error::Config(format!(
            "--train2-size {} exceeds the {} records of train1, of which train2 is a part",
            sizes.train2,
            train1.len()
        )));
    }
    let train2 = generator.sample(train1.len(), sizes.train2).into_iter().map(|at| train1[at]).collect();
    Ok(Parts { train1, train2, test })
}

/// Splits so that every bin has the same share of every part; bins are named for messages.
///
/// Bins come in order of first appearance, each with its units in file order. Where the bins' shares of `train2` exceed
/// what `train1` holds of them, `train2` is smaller than asked for.
pub(super) fn stratified(bins: Vec<(String, Vec<Unit>)>, sizes: Sizes, seed: u64) -> Result<Parts> {
    let (names, mut bins): (Vec<String>, Vec<Vec<Unit>>) = bins.into_iter().unzip();
    let counts: Vec<usize> = bins.iter().map(|units| units.iter().map(Vec::len).sum()).collect();
    let total: usize = counts.iter().sum();
    let mut generator = PythonRandom::new(seed);
    for units in &mut bins {
        generator.shuffle(units);
    }
    let quotas1 = quotas("--train1-size", sizes.train1, &counts, total, &names)?;
    for ((quota, count), name) in quotas1.iter().zip(&counts).zip(&names) {
        if quota > count {
            return Err(Error::Config(format!(
                "--train1-size {} needs {quota} {name} records, but only {count} of {total} usable records are {name}",
                sizes.train1
            )));
        }
    }
    let quotas2 = quotas("--train2-size", sizes.train2, &quotas1, sizes.train1, &names)?;

    let mut parts = Parts { train1: Vec::new(), train2: Vec::new(), test: Vec::new() };
    for ((units, quota1), quota2) in bins.into_iter().zip(quotas1).zip(quotas2) {
        let (train, rest) = cut(units, quota1);
        let drawn = generator.sample(train.len(), quota2.min(train.len()));
        parts.train2.extend(drawn.into_iter().map(|at| train[at]));
        parts.train1.extend(train);
        parts.test.extend(rest);
    }
    generator.shuffle(&mut parts.train1);
    generator.shuffle(&mut parts.train2);
    generator.shuffle(&mut parts.test);
    Ok(parts)
}

/// Takes whole units until `size` records are reached; returns their records and the rest's.
fn cut(units: Vec<Unit>, size: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut taken, mut rest) = (Vec::new(), Vec::new());
    for unit in units {
        if taken.len() < size { taken.extend(unit) } else { rest.extend(unit) }
    }
    (taken, rest)
}

/// Shares `size` out in proportion to `counts`, each rounded half to even; what rounding leaves over or short goes one by
/// one to the first bins.
fn quotas(flag: &str, size: usize, counts: &[usize], total: usize, names: &[String]) -> Result<Vec<usize>> {
    let rounded: Vec<i64> = counts.iter().map(|count| rounded_share(size, *count, total)).collect();
    let drift = size as i64 - rounded.iter().sum::<i64>();
    let corrected = rounded.iter().enumerate().map(|(bin, quota)| {
        let is_corrected = (bin as u64) < drift.unsigned_abs();
        if is_corrected { quota + drift.signum() } else { *quota }
    });
    corrected
        .zip(names)
        .map(|(quota, name)| {
            usize::try_from(quota).map_err(|_| {
                Error::Config(format!(
                    "{flag} {size} leaves {quota} records to {name} after rounding; choose another size"
                ))
            })
        })
        .collect()
}

/// `size · count / total`, rounded half to even, in whole numbers; 0 of 0.
fn rounded_share(size: usize, count: usize, total: usize) -> i64 {
    if total == 0 {
        return 0;
    }
    let product = size as u128 * count as u128;
    let (quotient, remainder) = (product / total as u128, product % total as u128);
    let rounds_up = match (2 * remainder).cmp(&(total as u128)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => quotient % 2 == 1,
        std::cmp::Ordering::Greater => true,
    };
    (quotient + u128::from(rounds_up)) as i64
}

#[cfg(test)]
mod tests;
