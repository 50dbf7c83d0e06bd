//! A hard cap on money: pure. The worst case of a request is set aside before it is sent, what it cost is settled after.
//!
//! What might have been charged without an answer to show for it (a cut connection, a time-out) stays counted in full.
//! So spent + lost + reserved never exceeds the cap, whatever happens in whatever order.

/// Money in millionths of a millionth of a USD, so that sums do not depend on their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Money(u64);

impl Money {
    /// Returns an amount of USD, rounded up; nothing is below 0.
    pub(crate) fn of_usd(usd: f64) -> Money {
        Money((usd * 1e12).ceil().max(0.0) as u64)
    }

    /// Returns an amount that was stored in USD, to the pico.
    pub(crate) fn of_stored(usd: f64) -> Money {
        Money((usd * 1e12).round().max(0.0) as u64)
    }

    /// Returns the amount in USD.
    pub(crate) fn usd(self) -> f64 {
        self.0 as f64 / 1e12
    }

    pub(crate) fn of_picos(picos: u64) -> Money {
        Money(picos)
    }

    pub(crate) fn picos(self) -> u64 {
        self.0
    }
}

impl std::ops::Add for Money {
    type Output = Money;

    fn add(self, other: Money) -> Money {
        Money(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for Money {
    fn add_assign(&mut self, other: Money) {
        *self = *self + other;
    }
}

impl std::ops::Sub for Money {
    type Output = Money;

    fn sub(self, other: Money) -> Money {
        Money(self.0.saturating_sub(other.0))
    }
}

/// What was paid, what may have been, what is set aside, and the cap on all three.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Budget {
    pub(crate) cap: Option<Money>,
    pub(crate) spent: Money,
    pub(crate) lost: Money,
    pub(crate) reserved: Money,
}

/// Why nothing may be set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There may be room once requests on their way have cost less than their worst case.
    Later,
    /// There is none until the cap is raised.
    Reached,
}

impl Budget {
    /// Sets a request's worst case aside.
    ///
    /// # Errors
    /// The cap leaves no room for it.
    pub(crate) fn reserve(&mut self, worst: Money) -> Result<(), Refused> {
        if let Some(cap) = self.cap {
            if self.spent + self.lost + worst > cap {
                return Err(Refused::Reached);
            }
            if self.spent + self.lost + self.reserved + worst > cap {
                return Err(Refused::Later);
            }
        }
        self.reserved += worst;
        Ok(())
    }

    /// Settles a request that cost `cost`.
    pub(crate) fn settle(&mut self, worst: Money, cost: Money) {
        self.reserved = self.reserved - worst;
        self.spent += cost;
    }

    /// Counts a request that may have been charged and brought nothing.
    pub(crate) fn lose(&mut self, worst: Money) {
        self.reserved = self.reserved - worst;
        self.lost += worst;
    }

    /// Gives back what was set aside for a request that was not charged.
    pub(crate) fn release(&mut self, worst: Money) {
        self.reserved = self.reserved - worst;
    }
}

#[cfg(test)]
mod tests {
    use shared::keyed_random::KeyedRandom;

    use super::*;

    fn budget(cap: u64) -> Budget {
        Budget { cap: Some(Money(cap)), ..Budget::default() }
    }

    #[test]
    fn a_cap_holds_in_whatever_order_requests_end() {
        for seed in 0..200 {
            let mut random = KeyedRandom::new(&[seed]);
            let mut budget = budget(1000);
            let mut open = Vec::new();
            let mut charged = 0;
            for _ in 0..500 {
                if random.below(2) == 0 || open.is_empty() {
                    let worst = 1 + random.below(40);
                    if budget.reserve(Money(worst)).is_ok() {
                        open.push(worst);
                    }
                } else {
                    let worst = open.swap_remove(random.below(open.len() as u64) as usize);
                    match random.below(3) {
                        0 => {
                            let cost = random.below(worst + 1);
                            charged += cost;
                            budget.settle(Money(worst), Money(cost));
                        }
                        1 => {
                            // The server charged, and nobody heard of it.
                            charged += worst;
                            budget.lose(Money(worst));
                        }
                        _ => budget.release(Money(worst)),
                    }
                }
                let most = charged + open.iter().sum::<u64>();
                assert!(most <= 1000, "seed {seed}: {most} of 1000 may be charged");
                assert_eq!(budget.spent + budget.lost + budget.reserved, Money(most), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_cap_that_may_still_hold_more_is_told_from_one_that_is_reached() {
        let mut budget = budget(100);
        budget.reserve(Money(60)).unwrap();
        assert_eq!(budget.reserve(Money(60)), Err(Refused::Later));
        budget.settle(Money(60), Money(30));
        budget.reserve(Money(60)).unwrap();
        budget.settle(Money(60), Money(60));
        assert_eq!(budget.reserve(Money(20)), Err(Refused::Reached));
        budget.cap = Some(Money(200));
        budget.reserve(Money(20)).unwrap();
        budget.cap = None;
        budget.reserve(Money(u64::MAX)).unwrap();
    }

    #[test]
    fn amounts_are_rounded_up() {
        assert_eq!(Money::of_usd(1e-13), Money(1));
        assert_eq!(Money::of_usd(2.5).usd(), 2.5);
        assert_eq!([-1.0, f64::NAN].map(Money::of_usd), [Money(0); 2]);
    }
}
