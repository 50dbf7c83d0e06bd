//! Python's random generator (spec A.1), so that the same seed gives the reference's splits, noise and samples.
//!
//! MT19937 seeded from an integer as CPython does it, and on top of its 32-bit outputs the draws that the reference's
//! scripts use. How many outputs a draw consumes is part of the contract: every later draw depends on it.

use rand_mt::Mt;

/// A Mersenne Twister with Python's seeding and Python's draws.
pub struct PythonRandom {
    twister: Mt,
}

impl PythonRandom {
    /// Creates the generator of `random.Random(seed)`.
    pub fn new(seed: u64) -> Self {
        // The key is the seed's 32-bit words, lowest first, without leading zero words but never empty.
        let low = seed as u32;
        let high = (seed >> 32) as u32;
        let words = if high == 0 { vec![low] } else { vec![low, high] };
        Self { twister: Mt::new_with_key(words) }
    }

    fn next_u32(&mut self) -> u32 {
        self.twister.next_u32()
    }

    /// Returns a number in [0, 1) with 53 random bits; consumes two outputs.
    pub fn random(&mut self) -> f64 {
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// Returns the `bits` highest bits of the next output.
    ///
    /// # Panics
    /// When `bits` is not in 1..=32.
    pub fn getrandbits(&mut self, bits: u32) -> u32 {
        assert!((1..=32).contains(&bits), "getrandbits takes 1 to 32 bits");
        self.next_u32() >> (32 - bits)
    }

    /// Returns a uniform index below `n`, by rejection.
    ///
    /// # Panics
    /// When `n` is 0 or above 2³² − 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u32::try_from(n).expect("lists of this program have fewer than 2^32 items");
        assert!(n > 0, "nothing lies below 0");
        let bits = 32 - n.leading_zeros();
        loop {
            let drawn = self.getrandbits(bits);
            if drawn < n {
                return drawn as usize;
            }
        }
    }

    /// Returns one element, `None` from an empty list.
    pub fn choice<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { Some(&items[self.below(items.len())]) }
    }

    /// Shuffles in place, from the end to the front.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }

    /// Returns `k` distinct indices of 0..n in draw order: the positions that `sample(list, k)` takes.
    ///
    /// # Panics
    /// When `k` exceeds `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "cannot draw {k} of {n} without replacement");
        if n <= set_size(k) { self.sample_from_pool(n, k) } else { self.sample_by_rejection(n, k) }
    }

    fn sample_from_pool(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = (0..n).collect();
        (0..k)
            .map(|drawn| {
                let slot = self.below(n - drawn);
                let index = pool[slot];
                pool[slot] = pool[n - drawn - 1];
                index
            })
            .collect()
    }

    fn sample_by_rejection(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut taken = std::collections::HashSet::with_capacity(k);
        let mut sample = Vec::with_capacity(k);
        while sample.len() < k {
            let index = self.below(n);
            if taken.insert(index) {
                sample.push(index);
            }
        }
        sample
    }
}

/// Population up to which Python copies the list: 21, plus 4^⌈log₄ 3k⌉ for k > 5.
fn set_size(k: usize) -> usize {
    let mut size = 21;
    if k > 5 {
        let mut power = 1usize;
        while power < 3 * k {
            power *= 4;
        }
        size += power;
    }
    size
}

#[cfg(test)]
mod tests;
