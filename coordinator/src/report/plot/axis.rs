//! Linear scales and their ticks.

/// Maps an interval of values to an interval of positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    values: (f64, f64),
    positions: (f64, f64),
}

impl Scale {
    /// An interval of no width is widened, so that every value has a position.
    pub(super) fn new(values: (f64, f64), positions: (f64, f64)) -> Self {
        let (low, high) = values;
        let values = if high > low { values } else { (low, low + 1.0) };
        Self { values, positions }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value - self.values.0) / (self.values.1 - self.values.0);
        self.positions.0 + share * (self.positions.1 - self.positions.0)
    }
}

/// Round numbers over an interval.
#[derive(Debug, PartialEq)]
pub(super) struct Ticks {
    step: f64,
    /// First and last tick as multiples of the step.
    range: (i64, i64),
}

impl Ticks {
    /// Returns ticks around an interval, beyond its ends where they are no round numbers; at most about `intervals` of
    /// them, 1, 2 or 5 times a power of ten apart.
    pub(super) fn around((low, high): (f64, f64), intervals: usize) -> Self {
        let span = if high > low { high - low } else { 1.0 };
        let rough = span / intervals as f64;
        let power = 10f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * (1.0 - 1e-9)).unwrap_or(10.0);
        let step = factor * power;
        // A hair of slack, so that rounding does not add a tick at an end that is one.
        let first = (low / step + 1e-9).floor() as i64;
        let last = (high / step - 1e-9).ceil() as i64;
        Self { step, range: (first, last.max(first + 1)) }
    }

    /// Counts have no ticks between whole numbers.
    pub(super) fn of_counts(highest: u64, intervals: usize) -> Self {
        let ticks = Self::around((0.0, highest.max(1) as f64), intervals);
        if ticks.step >= 1.0 { ticks } else { Self { step: 1.0, range: (0, highest.max(1).cast_signed()) } }
    }

    pub(super) fn ends(&self) -> (f64, f64) {
        (self.value(self.range.0), self.value(self.range.1))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        (self.range.0..=self.range.1).map(|multiple| self.value(multiple))
    }

    fn value(&self, multiple: i64) -> f64 {
        multiple as f64 * self.step
    }

    /// Returns a tick as text, with as many digits as the step needs.
    pub(super) fn label(&self, value: f64) -> String {
        let magnitude = self.step.log10().floor();
        if value == 0.0 {
            return "0".to_owned();
        }
        if !(-4.0..5.0).contains(&magnitude) {
            return format!("{value:.0e}").replace('-', "−");
        }
        format!("{value:.digits$}", digits = (-magnitude).max(0.0) as usize).replace('-', "−")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &Ticks) -> Vec<String> {
        ticks.values().map(|value| ticks.label(value)).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_the_interval() {
        assert_eq!(labels(&Ticks::around((0.0, 100.0), 4)), ["0", "50", "100"]);
        assert_eq!(labels(&Ticks::around((-3.9, 35.0), 5)), ["−10", "0", "10", "20", "30", "40"]);
        assert_eq!(labels(&Ticks::around((0.0, 0.3), 4)), ["0.0", "0.1", "0.2", "0.3"].map(|l| l.replace("0.0", "0")));
        assert_eq!(labels(&Ticks::around((2.0, 2.0), 4)), ["2.0", "2.5"]);
        assert_eq!(labels(&Ticks::around((0.0, 2e-7), 4))[1], "5e−8");
    }

    #[test]
    fn counts_have_whole_ticks() {
        assert_eq!(labels(&Ticks::of_counts(2, 4)), ["0", "1", "2"]);
        assert_eq!(labels(&Ticks::of_counts(0, 4)), ["0", "1"]);
        assert_eq!(labels(&Ticks::of_counts(232, 4)), ["0", "100", "200", "300"]);
    }

    #[test]
    fn a_scale_reaches_both_ends_and_has_no_empty_interval() {
        let scale = Scale::new((0.0, 4.0), (100.0, 0.0));
        assert_eq!((scale.at(0.0), scale.at(1.0), scale.at(4.0)), (100.0, 75.0, 0.0));
        assert_eq!(Scale::new((3.0, 3.0), (0.0, 10.0)).at(3.0), 0.0);
    }
}
