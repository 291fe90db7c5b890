//! SVG drawings that are readable on light and dark pages.

use std::fmt::Write as _;

/// A drawing that grows downwards.
#[derive(Debug)]
pub(crate) struct Svg {
    width: f64,
    height: f64,
    title: String,
    body: String,
}

/// Alignment of a text relative to its point.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

const STYLE: &str = r#"
    text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px; fill: #1f2328 }
    .page { fill: #ffffff; stroke: #d0d7de }
    .title { font-size: 15px; font-weight: 600 }
    .name { font-size: 13px; font-weight: 600 }
    .small { font-size: 11px; fill: #57606a }
    .strong { font-weight: 600 }
    .axis { stroke: #d0d7de; stroke-width: 1; fill: none }
    .spread { stroke: #1f2328; stroke-width: 1; fill: none }
    .c0 { fill: #0969da } .c1 { fill: #8c959f } .c2 { fill: #bf8700 } .c3 { fill: #8250df } .c4 { fill: #1a7f37 }
    .l0 { stroke: #0969da } .l1 { stroke: #8c959f } .l2 { stroke: #bf8700 } .l3 { stroke: #8250df } .l4 { stroke: #1a7f37 }
    .line { stroke-width: 2; fill: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .page { fill: #0d1117; stroke: #30363d }
      .small { fill: #9da7b3 }
      .axis { stroke: #30363d }
      .spread { stroke: #e6edf3 }
      .c0 { fill: #4493f8 } .c1 { fill: #6e7681 } .c2 { fill: #d29922 } .c3 { fill: #a371f7 } .c4 { fill: #3fb950 }
      .l0 { stroke: #4493f8 } .l1 { stroke: #6e7681 } .l2 { stroke: #d29922 } .l3 { stroke: #a371f7 } .l4 { stroke: #3fb950 }
    }
"#;

/// Number of colours of series, used in turn; the first is this project's.
pub(crate) const COLOURS: usize = 5;

impl Svg {
    pub(crate) fn new(width: f64, title: &str) -> Self {
        Self { width, height: 0.0, title: escaped(title), body: String::new() }
    }

    pub(crate) fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        self.reach(y + height);
        self.put(&format!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2"/>"#
        ));
    }

    pub(crate) fn text(&mut self, class: &str, anchor: Anchor, x: f64, y: f64, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.reach(y + 4.0);
        let text = escaped(text);
        self.put(&format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#));
    }

    pub(crate) fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(&format!(r#"<polyline class="{class}" points="{}"/>"#, points.join(" ")));
    }

    pub(crate) fn dot(&mut self, class: &str, x: f64, y: f64) {
        self.put(&format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.5"/>"#));
    }

    /// Returns the SVG document.
    pub(crate) fn finish(self) -> String {
        let Self { width, height, title, body } = self;
        let height = height + 20.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" role=\"img\" \
             aria-labelledby=\"title\">\n  <title id=\"title\">{title}</title>\n  <style>{STYLE}  </style>\n  \
             <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{:.0}\" rx=\"10\"/>\n{body}</svg>\n",
            width - 1.0,
            height - 1.0,
        )
    }

    fn reach(&mut self, y: f64) {
        self.height = self.height.max(y);
    }

    fn put(&mut self, element: &str) {
        let _ = writeln!(self.body, "  {element}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_drawing() {
        let mut svg = Svg::new(100.0, "a < b");
        svg.text("small", Anchor::Start, 1.0, 2.0, "<&>");
        let drawn = svg.finish();
        assert!(drawn.contains("a &lt; b") && drawn.contains(">&lt;&amp;&gt;<"), "{drawn}");
    }
}
