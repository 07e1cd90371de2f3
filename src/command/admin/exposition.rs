//! The text formats in which scrapers read metrics: OpenMetrics 1.0, and Prometheus' older one.
//!
//! Owns syntax. The two differ in where a counter's `_total` stands, in the type of constant
//! information, and in the end mark.

use std::fmt::Write as _;

/// Room for the text of a few workers; it grows with their number.
const BYTES: usize = 32 * 1024;

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Prometheus,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows; samples end in `_total`.
    Counter,
    /// A present value.
    Gauge,
    /// Counts by size: buckets, a sum and a count.
    Histogram,
    /// A sum and a count.
    Summary,
    /// Always 1; the information is in the labels, and the sample ends in `_info`.
    Info,
}

/// Metrics as text.
#[derive(Debug)]
pub(super) struct Exposition {
    format: Format,
    text: String,
    /// Name of the present family's samples.
    sample: String,
}

impl Format {
    /// The format that an `Accept` field asks for; OpenMetrics if it has no preference.
    pub(super) fn accepted(accept: &str) -> Self {
        let wants_old = accept.contains("text/plain");
        match wants_old && !accept.contains("application/openmetrics-text") {
            true => Self::Prometheus,
            false => Self::OpenMetrics,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Exposition {
    pub(super) fn new(format: Format) -> Self {
        Self { format, text: String::with_capacity(BYTES), sample: String::new() }
    }

    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let (suffix, word) = match kind {
            Kind::Counter => ("_total", "counter"),
            Kind::Gauge => ("", "gauge"),
            Kind::Histogram => ("", "histogram"),
            Kind::Summary => ("", "summary"),
            Kind::Info => ("_info", "info"),
        };
        self.sample.clear();
        self.sample.push_str(name);
        self.sample.push_str(suffix);
        let (family, word) = match (self.format, kind) {
            (Format::OpenMetrics, _) => (name, word),
            (Format::Prometheus, Kind::Info) => (&*self.sample, "gauge"),
            (Format::Prometheus, _) => (&*self.sample, word),
        };
        let _ = write!(self.text, "# TYPE {family} {word}\n# HELP {family} ");
        push_escaped(&mut self.text, help);
        self.text.push('\n');
    }

    /// Adds a sample.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: Value) {
        self.part("", labels, value);
    }

    /// Adds a sample to a family that has several per set of labels.
    pub(super) fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: Value) {
        self.text.push_str(&self.sample);
        self.text.push_str(suffix);
        for (place, (name, value)) in labels.iter().enumerate() {
            self.text.push(if place == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            push_escaped(&mut self.text, value);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = match value {
            Value::Count(count) => writeln!(self.text, " {count}"),
            Value::Number(number) => writeln!(self.text, " {number}"),
        };
    }

    /// A family with one sample and no labels.
    pub(super) fn single(&mut self, name: &str, kind: Kind, help: &str, value: Value) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text += "# EOF\n";
        }
        self.text
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Count(u64),
    Number(f64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Count(is.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

/// Appends a text, and a backslash in front of what the formats reserve.
fn push_escaped(to: &mut String, mut text: &str) {
    let is_reserved = |byte: u8| matches!(byte, b'\\' | b'"' | b'\n');
    while let Some(place) = text.bytes().position(is_reserved) {
        let (plain, rest) = text.split_at(place);
        let (reserved, rest) = rest.split_at(1);
        to.push_str(plain);
        to.push('\\');
        to.push_str(if reserved == "\n" { "n" } else { reserved });
        text = rest;
    }
    to.push_str(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: Format) -> String {
        let mut text = Exposition::new(format);
        text.family("a_things", Kind::Counter, "Things.");
        text.sample(&[("slot", "0"), ("name", "b\"\\\n")], 3.into());
        text.family("a_build", Kind::Info, "The build.");
        text.sample(&[("version", "1")], 1.into());
        text.single("a_seconds", Kind::Gauge, "Time.", 1.5.into());
        text.finish()
    }

    #[test]
    fn both_formats_are_written_as_they_are_specified() {
        assert_eq!(
            written(Format::OpenMetrics),
            "# TYPE a_things counter\n# HELP a_things Things.\n\
             a_things_total{slot=\"0\",name=\"b\\\"\\\\\\n\"} 3\n\
             # TYPE a_build info\n# HELP a_build The build.\na_build_info{version=\"1\"} 1\n\
             # TYPE a_seconds gauge\n# HELP a_seconds Time.\na_seconds 1.5\n# EOF\n"
        );
        let old = written(Format::Prometheus);
        assert!(old.contains("# TYPE a_things_total counter\n"), "{old}");
        assert!(old.contains("# TYPE a_build_info gauge\n") && !old.contains("EOF"), "{old}");
    }

    #[test]
    fn scrapers_get_what_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3,*/*";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::OpenMetrics);
        assert_eq!(Format::accepted("text/plain;version=0.0.4"), Format::Prometheus);
    }
}
