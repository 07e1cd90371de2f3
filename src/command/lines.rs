//! A worker's output as lines, each with its worker's name in front. Pure: bytes in, bytes out.

/// Longest line; a longer one is printed in pieces.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Output of a worker without its line end yet.
#[derive(Debug)]
pub(super) struct LineBuffer {
    /// In front of a line, and of the further pieces of a long one.
    marks: [Vec<u8>; 2],
    rest: Vec<u8>,
    /// The rest continues a line of which a piece has been printed.
    continues: bool,
}

impl LineBuffer {
    /// Empty, for the worker with this number.
    pub(super) fn new(worker: u32, coloured: bool) -> Self {
        let mark = |sign: char| match coloured {
            // Six colours that differ on light and dark backgrounds.
            true => format!("\x1b[3{}mworker {worker} {sign}\x1b[0m ", 1 + worker % 6),
            false => format!("worker {worker} {sign} "),
        };
        let marks = [mark('|').into_bytes(), mark('+').into_bytes()];
        Self { marks, rest: Vec::new(), continues: false }
    }

    /// Adds bytes, and writes complete lines to `output`.
    pub(super) fn take(&mut self, bytes: &[u8], output: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            while self.rest.len() > LINE_BYTES_MAX {
                let length = whole_characters(&self.rest[..LINE_BYTES_MAX]);
                self.put(length, output);
                output.push(b'\n');
                self.continues = true;
            }
            if self.rest.ends_with(b"\n") {
                self.put(self.rest.len(), output);
                self.continues = false;
            }
        }
    }

    /// Writes a last line without an end.
    pub(super) fn end(&mut self, output: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.put(self.rest.len(), output);
            output.push(b'\n');
        }
    }

    fn put(&mut self, length: usize, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.marks[usize::from(self.continues)]);
        output.extend(self.rest.drain(..length));
    }
}

/// Length up to the last whole UTF-8 character; everything if it is not UTF-8.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn output(parts: &[&[u8]]) -> String {
        let (mut lines, mut output) = (LineBuffer::new(3, false), Vec::new());
        parts.iter().for_each(|part| lines.take(part, &mut output));
        lines.end(&mut output);
        String::from_utf8(output).expect("text")
    }

    #[test]
    fn lines_are_told_whole() {
        assert_eq!(
            output(&[b"one\ntw", b"o\n\nthree"]),
            concat!("worker 3 | one\n", "worker 3 | two\n", "worker 3 | \n", "worker 3 | three\n")
        );
        assert_eq!(output(&[b""]), "");
    }

    #[test]
    fn long_lines_are_told_in_pieces_of_whole_characters() {
        let long = "ö".repeat(LINE_BYTES_MAX);
        let text = output(&[b"x", long.as_bytes(), b"\nshort\n"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].starts_with("worker 3 | x") && lines[1].starts_with("worker 3 + "));
        assert!(lines.iter().all(|line| line.len() <= LINE_BYTES_MAX + "worker 3 | ".len()));
        assert_eq!(lines[3], "worker 3 | short");
    }

    #[test]
    fn colours_end_before_the_line_begins() {
        let (mut lines, mut output) = (LineBuffer::new(1, true), Vec::new());
        lines.take(b"a\n", &mut output);
        assert_eq!(output, b"\x1b[32mworker 1 |\x1b[0m a\n");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_kept_however_it_arrives(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            cut in 0usize..200,
        ) {
            let cut = cut.min(bytes.len());
            let (mut lines, mut output) = (LineBuffer::new(3, false), Vec::new());
            lines.take(&bytes[..cut], &mut output);
            lines.take(&bytes[cut..], &mut output);
            lines.end(&mut output);
            let mut expected = Vec::new();
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                expected.extend_from_slice(b"worker 3 | ");
                expected.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
                expected.push(b'\n');
            }
            prop_assert_eq!(output, expected);
        }
    }
}
