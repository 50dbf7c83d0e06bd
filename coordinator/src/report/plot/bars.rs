//! Amounts as horizontal bars, each under a line of its own with name and value.

use super::Name;
use super::svg::{Anchor, Svg, TEXT, WIDTH, width_of};

const ROW: f64 = 36.0;
const THICKNESS: f64 = 9.0;

#[derive(Debug)]
pub(in crate::report) struct Bar {
    pub(in crate::report) label: String,
    /// How the amount is written.
    pub(in crate::report) shown: String,
    /// The amount, not negative.
    pub(in crate::report) amount: f64,
    pub(in crate::report) pale: bool,
}

/// Draws bars in proportion to the greatest amount.
pub(in crate::report) fn draw(name: Name, bars: &[Bar]) -> String {
    let greatest = bars.iter().map(|bar| bar.amount).fold(0.0, f64::max);
    let mut svg = Svg::default();
    for (index, bar) in bars.iter().enumerate() {
        let top = ROW * index as f64;
        let base_line = top + TEXT;
        svg.label(base_line - 5.0, WIDTH - width_of(&bar.shown) - 12.0, 1, &bar.label);
        svg.text("value", Anchor::End, (WIDTH, base_line), &bar.shown);
        let at = (0.0, base_line + 6.0);
        svg.rect("track", at, (WIDTH, THICKNESS));
        if bar.amount > 0.0 {
            let width = (WIDTH * bar.amount / greatest).max(1.0);
            svg.rect(if bar.pale { "bar pale" } else { "bar plain" }, at, (width, THICKNESS));
        }
    }
    svg.finish(name, ROW * bars.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion_and_nothing_has_no_bar() {
        let bar = |amount, pale| Bar { label: "s".into(), shown: "x".into(), amount, pale };
        let name = Name { id: "b", title: "Time", description: "" };
        let svg = draw(name, &[bar(4.0, false), bar(1.0, true), bar(0.0, false)]);
        assert!(svg.contains(r#"<rect class="bar plain" x="0.0" y="20.0" width="340.0""#), "{svg}");
        assert!(svg.contains(r#"<rect class="bar pale" x="0.0" y="56.0" width="85.0""#), "{svg}");
        assert_eq!(svg.matches("class=\"bar").count(), 2);
        assert!(!draw(name, &[bar(0.0, false)]).contains("NaN"));
    }
}
