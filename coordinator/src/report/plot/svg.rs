//! Writes SVG elements; the only place that knows the syntax, so that every text is escaped.

use std::fmt::Write;

use super::Name;

/// Width of every plot.
pub(super) const WIDTH: f64 = 340.0;
/// Size of text.
pub(super) const TEXT: f64 = 14.0;
/// From line to line of a label.
pub(super) const LINE: f64 = 16.0;

#[derive(Debug, Default)]
pub(super) struct Svg(String);

/// Which end of a text lies at its position.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

// Writing to a string cannot fail, so results are let go.
impl Svg {
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = write!(self.0, r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#);
    }

    /// Draws a rectangle from its upper left corner.
    pub(super) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let _ =
            write!(self.0, r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#);
    }

    pub(super) fn path(&mut self, class: &str, commands: &str) {
        let _ = write!(self.0, r#"<path class="{class}" d="{commands}"/>"#);
    }

    /// Writes a text on its base line.
    pub(super) fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ = write!(self.0, r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
    }

    /// Writes a text at the left, in lines of at most `width` around a middle; the whole can be read by pointing at it
    /// where it had to be cut.
    pub(super) fn label(&mut self, middle: f64, width: f64, lines: usize, text: &str) {
        let (fitted, cut) = wrap(text, width, lines);
        if cut {
            let _ = write!(self.0, "<g><title>{}</title>", escape(text));
        }
        let above = LINE * (fitted.len() as f64 - 1.0) / 2.0;
        for (index, line) in fitted.iter().enumerate() {
            self.text("label", Anchor::Start, (0.0, middle + 5.0 - above + LINE * index as f64), line);
        }
        if cut {
            self.0.push_str("</g>");
        }
    }

    pub(super) fn finish(self, name: Name, height: f64) -> String {
        let Name { id, title, description } = name;
        let (id, title, description) = (escape(id), escape(title), escape(description));
        format!(
            r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-labelledby="{id}-title {id}-desc"><title id="{id}-title">{title}</title><desc id="{id}-desc">{description}</desc>{}</svg>"#,
            self.0
        )
    }
}

/// Returns about how wide a text is drawn; wide scripts count a full square a letter.
pub(super) fn width_of(text: &str) -> f64 {
    text.chars().map(|letter| if letter < '\u{1100}' { 0.6 * TEXT } else { TEXT }).sum()
}

/// Breaks a text at its spaces into at most so many lines, the last cut where it is too long, and says whether it was.
pub(super) fn wrap(text: &str, width: f64, lines: usize) -> (Vec<String>, bool) {
    let mut wrapped = vec![String::new()];
    for word in text.split(' ') {
        let full = wrapped.len() == lines;
        let line = wrapped.last_mut().expect("begins with a line and only grows");
        if line.is_empty() {
            line.push_str(word);
        } else if full || width_of(line) + width_of(" ") + width_of(word) <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            wrapped.push(word.to_owned());
        }
    }
    let mut cut = false;
    for line in &mut wrapped {
        if width_of(line) > width {
            *line = shorten(line, width);
            cut = true;
        }
    }
    (wrapped, cut)
}

/// Cuts a text that is wider than `width`, with an ellipsis in place of the rest.
fn shorten(text: &str, width: f64) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        short.push(letter);
        if width_of(&short) + width_of("…") > width {
            short.pop();
            break;
        }
    }
    short + "…"
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_escaped() {
        let bad = "<script>\"&'";
        let mut svg = Svg::default();
        svg.text("c", Anchor::End, (1.0, 2.0), bad);
        svg.label(9.0, 40.0, 1, bad);
        let text = svg.finish(Name { id: bad, title: bad, description: bad }, 10.0);
        assert!(!text.contains("<script"), "{text}");
        assert_eq!(text.matches("&lt;script&gt;&quot;&amp;&#39;").count(), 8, "{text}");
    }

    #[test]
    fn labels_are_broken_at_spaces_and_cut_only_where_they_must_be() {
        let lines = |text, lines| wrap(text, 65.0, lines);
        assert_eq!(lines("garden", 2), (vec!["garden".to_owned()], false));
        assert_eq!(lines("a home garden", 2), (vec!["a home".to_owned(), "garden".to_owned()], false));
        assert_eq!(lines("a home garden", 1), (vec!["a home…".to_owned()], true));
        assert_eq!(lines("incomprehensible law", 2), (vec!["incomp…".to_owned(), "law".to_owned()], true));
        assert!(width_of(&lines("政策变化政策变化", 2).0[0]) <= 65.0);
    }
}
