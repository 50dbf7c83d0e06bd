//! Counts of scores, those that are clamped told apart.

use super::Name;
use super::axis::{Scale, Ticks};
use super::mark::Style;
use super::svg::{Anchor, Svg, TEXT, WIDTH, width_of};
use crate::report::scores::Histogram;

const HEIGHT: f64 = 150.0;
/// A single record beside a bin of hundreds must not vanish.
const LOWEST_BAR: f64 = 2.0;

/// Draws a bar a bin; bins whose scores are not positive are grey.
pub(in crate::report) fn draw(name: Name, histogram: &Histogram, style: Style) -> String {
    let Histogram { edges, counts } = histogram;
    let y_ticks = Ticks::of_counts(counts.iter().copied().max().unwrap_or(0) as u64, 4);
    let left = y_ticks.values().map(|tick| width_of(&y_ticks.label(tick))).fold(0.0, f64::max) + 8.0;
    let (top, right) = (8.0, WIDTH - 12.0);
    let ends = (edges.first().copied().unwrap_or(0.0), edges.last().copied().unwrap_or(1.0));
    let x = Scale::new(ends, (left, right));
    let y = Scale::new(y_ticks.ends(), (HEIGHT, top));

    let mut svg = Svg::default();
    for tick in y_ticks.values() {
        svg.line(if tick == 0.0 { "axis" } else { "grid" }, (left, y.at(tick)), (right, y.at(tick)));
        svg.text("tick", Anchor::End, (left - 8.0, y.at(tick) + 5.0), &y_ticks.label(tick));
    }
    for (bin, count) in edges.windows(2).zip(counts).filter(|(_, count)| **count > 0) {
        let (from, to) = (x.at(bin[0]), x.at(bin[1]));
        let height = (HEIGHT - y.at(*count as f64)).max(LOWEST_BAR);
        let class = if bin[1] <= 0.0 { "bar clamped".to_owned() } else { format!("bar {}", style.class()) };
        svg.rect(&class, (from + 0.5, HEIGHT - height), ((to - from - 1.0).max(1.0), height));
    }
    let x_ticks = Ticks::around(ends, 5);
    for tick in x_ticks.values().filter(|tick| (ends.0..=ends.1).contains(tick)) {
        svg.line("axis", (x.at(tick), HEIGHT), (x.at(tick), HEIGHT + 4.0));
        svg.text("tick", Anchor::Middle, (x.at(tick), HEIGHT + TEXT + 6.0), &x_ticks.label(tick));
    }
    svg.finish(name, HEIGHT + TEXT + 12.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_up_to_zero_are_grey_and_empty_ones_not_drawn() {
        let histogram = Histogram { edges: vec![-2.0, -1.0, 0.0, 1.0, 2.0], counts: vec![1, 2, 500, 0] };
        let svg = draw(Name { id: "h", title: "Scores", description: "" }, &histogram, Style::trained(1));
        assert_eq!(svg.matches("bar clamped").count(), 2);
        assert_eq!(svg.matches("bar v2").count(), 1);
        assert_eq!(svg.matches("height=\"2.0\"").count(), 2, "one and two of 500 stay visible: {svg}");
    }
}
