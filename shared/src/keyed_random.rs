//! Random numbers from a key instead of a history: the same key gives the same numbers whatever was drawn before.
//!
//! Everything random that must not depend on restarts, packing or the number of ranks (dropout masks, data order,
//! sampling, start values) is drawn here. SplitMix64 on a mixed key; not for secrets.

/// A generator whose whole state comes from its key.
#[derive(Debug, Clone)]
pub struct KeyedRandom {
    state: u64,
}

impl KeyedRandom {
    /// Starts the stream of `key`. Keys that differ in any word, or in length, give unrelated streams.
    pub fn new(key: &[u64]) -> Self {
        let mut state = mix(key.len() as u64 ^ 0x9e37_79b9_7f4a_7c15);
        for word in key {
            state = mix(state ^ mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        }
        KeyedRandom { state }
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Returns the next number in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Returns the next number below `n`, without bias.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0)");
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let draw = self.next_u64();
            if draw < limit {
                return draw % n;
            }
        }
    }

    /// Returns the next standard normal number (Box-Muller, one of the two).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Shuffles in place (Fisher-Yates from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Stafford's variant 13 of the 64-bit finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fixes_the_stream_and_its_words_all_count() {
        let draw = |key: &[u64]| {
            let mut random = KeyedRandom::new(key);
            [random.next_u64(), random.next_u64()]
        };
        assert_eq!(draw(&[1, 2, 3]), draw(&[1, 2, 3]));
        for other in [&[1, 2, 4][..], &[1, 3, 2], &[1, 2], &[1, 2, 3, 0]] {
            assert_ne!(draw(&[1, 2, 3]), draw(other));
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut random = KeyedRandom::new(&[7]);
        let n = 100_000;
        let (mut mean, mut normal_square) = (0.0, 0.0);
        for _ in 0..n {
            mean += random.uniform() / n as f64;
            normal_square += random.normal().powi(2) / n as f64;
        }
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        assert!((normal_square - 1.0).abs() < 0.02, "{normal_square}");
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<u32> = (0..50).collect();
        KeyedRandom::new(&[3]).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
