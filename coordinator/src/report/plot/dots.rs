//! Shares with their intervals as dots and whiskers, on an axis from 0 to 100 %.

use shared::stats::Measured;

use super::Name;
use super::axis::Scale;
use super::mark::Style;
use super::svg::{Anchor, LINE, Svg, TEXT, WIDTH, width_of, wrap};

const LANE: f64 = 14.0;
const GAP: f64 = 12.0;
const WIDEST_LABEL: f64 = 136.0;
const LABEL_LINES: usize = 3;

/// What is measured, and what was found for each variant in their order.
#[derive(Debug)]
pub(in crate::report) struct Row {
    pub(in crate::report) label: String,
    /// A variant without a value keeps its lane empty.
    pub(in crate::report) marks: Vec<(Style, Option<Measured>)>,
}

/// Draws a group of lanes a row. Where every row has one lane only, its value is written at the right.
pub(in crate::report) fn draw(name: Name, rows: &[Row]) -> String {
    let widest = rows.iter().map(|row| width_of(&row.label)).fold(0.0, f64::max);
    let labels = widest.min(WIDEST_LABEL);
    let with_values = rows.iter().all(|row| row.marks.len() == 1);
    let (left, right) = (labels + 12.0, WIDTH - if with_values { 48.0 } else { 14.0 });
    let x = Scale::new((0.0, 100.0), (left, right));
    let heights: Vec<f64> = rows.iter().map(|row| height(row, labels)).collect();
    let bottom: f64 = heights.iter().sum();

    let mut svg = Svg::default();
    for tick in [0.0, 25.0, 50.0, 75.0, 100.0] {
        svg.line("grid", (x.at(tick), 0.0), (x.at(tick), bottom));
        svg.text("tick", Anchor::Middle, (x.at(tick), bottom + TEXT + 3.0), &format!("{tick}"));
    }
    let mut top = 0.0;
    for (row, height) in rows.iter().zip(heights) {
        if top > 0.0 {
            svg.line("grid", (0.0, top), (right, top));
        }
        let middle = top + height / 2.0;
        svg.label(middle, labels, LABEL_LINES, &row.label);
        for (lane, (style, measured)) in row.marks.iter().enumerate() {
            let Some(Measured { value, low, high, .. }) = measured else { continue };
            let y = middle + LANE * (lane as f64 + 0.5 - row.marks.len() as f64 / 2.0);
            let class = style.class();
            svg.line(&format!("whisker {class}"), (x.at(*low), y), (x.at(*high), y));
            svg.path(&format!("mark {class}"), &style.shape((x.at(*value), y)));
            if with_values {
                svg.text("value", Anchor::End, (WIDTH, y + 5.0), &format!("{value:.1}"));
            }
        }
        top += height;
    }
    svg.finish(name, bottom + TEXT + 8.0)
}

/// Room for the lanes, and for the label.
fn height(row: &Row, labels: f64) -> f64 {
    let label = wrap(&row.label, labels, LABEL_LINES).0.len() as f64 * LINE;
    GAP + label.max(LANE * row.marks.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name { id: "a", title: "Agreement", description: "by domain" };

    #[test]
    fn a_mark_and_its_whisker_lie_where_the_numbers_say() {
        let measured = Measured { value: 50.0, low: 25.0, high: 75.0, n: 4 };
        let row = |label: &str| Row {
            label: label.into(),
            marks: vec![(Style::BASE, Some(measured)), (Style::trained(0), None)],
        };
        let svg = draw(NAME, &[row("law"), row("food")]);
        // Labels take 4 letters and a gap: 0 % lies at 45.6, 100 % at 326.
        assert!(svg.contains(r#"<line class="whisker v0" x1="115.7" y1="13.0" x2="255.9" y2="13.0"/>"#), "{svg}");
        assert_eq!(svg.matches("whisker v0").count(), 2);
        assert_eq!(svg.matches("mark v1").count(), 0, "what was not measured is not drawn");
        assert!(!svg.contains("class=\"value\""));
        assert!(svg.starts_with("<svg viewBox=\"0 0 340 ") && svg.contains("<title id=\"a-title\">Agreement</title>"));
    }

    #[test]
    fn single_lanes_show_their_values() {
        let measured = Measured { value: 93.04, low: 90.0, high: 95.0, n: 400 };
        let svg = draw(NAME, &[Row { label: "trace".into(), marks: vec![(Style::trained(0), Some(measured))] }]);
        assert!(svg.contains(">93.0</text>"), "{svg}");
    }
}
