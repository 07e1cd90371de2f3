//! An HdrHistogram interval log: one line a second and kind of latency, in nanoseconds, tagged
//! `connect`, `first_byte` and `response`. Tools that read the format can add up, cut and plot it.
//!
//! Lines are written as seconds complete, so that memory does not grow with the run.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::OutputFile;
use crate::collect::Interval;
use crate::error::Error;

/// A log under way.
pub(crate) struct HdrLog {
    file: OutputFile,
    serializer: V2DeflateSerializer,
}

impl HdrLog {
    /// Creates the file.
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        Ok(Self { file: super::create(path)?, serializer: V2DeflateSerializer::new() })
    }

    /// Writes the head: seconds count from `measured_from_unix_ms`.
    pub(crate) fn begin(&mut self, measured_from_unix_ms: u64) -> Result<(), Error> {
        let serializer = &mut self.serializer;
        self.file.write_with(|writer| {
            let start = UNIX_EPOCH + Duration::from_millis(measured_from_unix_ms);
            IntervalLogWriterBuilder::new()
                .add_comment("[Histogram log format version 1.3]")
                .add_comment("clusterlb-load: latencies in nanoseconds, one line a second and kind")
                .with_base_time(start)
                .with_start_time(start)
                .begin_log_with(writer, serializer)?;
            writeln!(
                writer,
                "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
                 \"Interval_Compressed_Histogram\""
            )
        })
    }

    /// Writes a second.
    pub(crate) fn second(&mut self, interval: &Interval) -> Result<(), Error> {
        let latencies = &interval.latencies;
        let kinds: [(&str, &Histogram<u64>); 3] = [
            ("connect", &latencies.connect),
            ("first_byte", &latencies.first_byte),
            ("response", &latencies.response),
        ];
        let serializer = &mut self.serializer;
        self.file.write_with(|writer| {
            let mut log = IntervalLogWriterBuilder::new().begin_log_with(writer, serializer)?;
            for (name, histogram) in kinds.into_iter().filter(|(_, all)| !all.is_empty()) {
                let start = Duration::from_secs(interval.second);
                log.write_histogram(histogram, start, Duration::from_secs(1), Tag::new(name))
                    .map_err(std::io::Error::other)?;
            }
            Ok(())
        })
    }
}
