//! Curves over steps, one a variant, on a common axis.

use super::Name;
use super::axis::{Scale, Ticks};
use super::mark::Style;
use super::svg::{Anchor, Svg, TEXT, WIDTH, width_of};

const HEIGHT: f64 = 180.0;

/// One variant's values; a gap where there is none.
#[derive(Debug)]
pub(in crate::report) struct Line<'a> {
    pub(in crate::report) style: Style,
    pub(in crate::report) steps: &'a [u64],
    pub(in crate::report) values: &'a [Option<f64>],
}

impl Line<'_> {
    fn points(&self) -> impl Iterator<Item = (f64, Option<f64>)> + '_ {
        self.steps.iter().map(|step| *step as f64).zip(self.values.iter().copied())
    }
}

/// Draws curves from an axis that holds 0. The last point of each carries the variant's shape.
pub(in crate::report) fn draw(name: Name, lines: &[Line]) -> String {
    let values = || lines.iter().flat_map(|line| line.values.iter().copied().flatten());
    let y_ticks = Ticks::around((values().fold(0.0, f64::min), values().fold(0.0, f64::max)), 4);
    let last_step = lines.iter().filter_map(|line| line.steps.last()).max().copied().unwrap_or(1);
    let x_ticks = Ticks::of_counts(last_step, 4);

    let left = y_ticks.values().map(|tick| width_of(&y_ticks.label(tick))).fold(0.0, f64::max) + 8.0;
    let (top, right) = (8.0, WIDTH - 16.0);
    let x = Scale::new((0.0, last_step as f64), (left, right));
    let y = Scale::new(y_ticks.ends(), (HEIGHT, top));

    let mut svg = Svg::default();
    for tick in y_ticks.values() {
        let class = if tick == 0.0 { "axis" } else { "grid" };
        svg.line(class, (left, y.at(tick)), (right, y.at(tick)));
        svg.text("tick", Anchor::End, (left - 8.0, y.at(tick) + 5.0), &y_ticks.label(tick));
    }
    for tick in x_ticks.values().filter(|tick| *tick <= last_step as f64) {
        svg.text("tick", Anchor::Middle, (x.at(tick), HEIGHT + TEXT + 4.0), &x_ticks.label(tick));
    }
    for line in lines {
        let class = line.style.class();
        svg.path(&format!("curve {class}"), &commands(line, x, y));
        if let Some((step, value)) = line.points().filter_map(|(step, value)| Some((step, value?))).last() {
            svg.path(&format!("mark {class}"), &line.style.shape((x.at(step), y.at(value))));
        }
    }
    svg.finish(name, HEIGHT + TEXT + 10.0)
}

/// Returns the path of a curve, interrupted at its gaps.
fn commands(line: &Line, x: Scale, y: Scale) -> String {
    let mut commands = String::new();
    let mut drawing = false;
    for (step, value) in line.points() {
        if let Some(value) = value {
            commands.push_str(&format!("{}{:.1} {:.1}", if drawing { "L" } else { "M" }, x.at(step), y.at(value)));
        }
        drawing = value.is_some();
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name { id: "l", title: "Loss", description: "by step" };

    #[test]
    fn a_curve_stops_at_a_gap_and_ends_with_its_mark() {
        let steps = [1, 2, 3, 4];
        let values = [Some(1.0), Some(0.5), None, Some(0.0)];
        let svg = draw(NAME, &[Line { style: Style::trained(0), steps: &steps, values: &values }]);
        let path = svg.split("class=\"curve v1\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
        assert_eq!(svg.matches("mark v1").count(), 1);
    }

    #[test]
    fn negative_and_missing_values_are_drawn_within_the_plot() {
        let svg = draw(NAME, &[Line { style: Style::BASE, steps: &[1], values: &[Some(-3.0)] }]);
        assert!(svg.contains("−3") || svg.contains("−4"), "{svg}");
        let empty = draw(NAME, &[Line { style: Style::BASE, steps: &[1], values: &[None] }]);
        assert!(!empty.contains("NaN") && !empty.contains("mark"), "{empty}");
        assert!(!draw(NAME, &[]).contains("NaN"));
    }
}
