//! Errors about options that were not written on the command line, in the words of the file or the
//! variable where they stand.

use std::collections::BTreeMap;

use clusterlb::Error;

/// Where options stand, and what they are called there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Terms(BTreeMap<String, Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    /// In front of the error; empty where the name says it all.
    place: String,
    name: String,
}

impl Terms {
    /// An option of the file stands at `place`.
    pub(super) fn add_key(&mut self, key: &str, place: String) {
        self.0.insert(key.to_owned(), Term { place, name: format!("`{key}`") });
    }

    /// An option of the environment has this variable.
    pub(super) fn add_variable(&mut self, key: &str, name: &str) {
        self.0.insert(key.to_owned(), Term { place: String::new(), name: name.to_owned() });
    }

    /// The same error, with these options called as where they stand.
    pub(super) fn translate(&self, error: Error) -> Error {
        let Error::Usage { what, hint } = error else { return error };
        let (what, place) = self.translated(&what);
        let (hint, _) = self.translated(&hint);
        match place {
            Some(place) => Error::usage(format!("{place}: {what}"), hint),
            None => Error::usage(what, hint),
        }
    }

    /// A text with other names, and where the first option in it stands.
    fn translated(&self, text: &str) -> (String, Option<String>) {
        let (mut done, mut place) = (String::new(), None);
        let mut pieces = text.split("--");
        done.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let is_part = |letter: char| letter.is_ascii_lowercase() || letter == '-';
            let end = piece.find(|letter| !is_part(letter)).unwrap_or(piece.len());
            let (key, rest) = piece.split_at(end);
            let Some(Term { place: at, name }) = self.0.get(key) else {
                done.extend(["--", piece]);
                continue;
            };
            if place.is_none() && !at.is_empty() {
                place = Some(at.clone());
            }
            // clap and some hints quote an option.
            let quoted = done.ends_with(['`', '\'']).then(|| done.pop()).flatten();
            done.push_str(name);
            done.push_str(quoted.and_then(|quote| rest.strip_prefix(quote)).unwrap_or(rest));
        }
        (done, place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_called_as_where_they_stand() {
        let mut terms = Terms::default();
        terms.add_key("max-inflight", "c.toml, line 3".into());
        terms.add_key("json", "c.toml, line 4".into());
        terms.add_variable("policy", "CLUSTERLB_POLICY");
        for (what, said) in [
            (
                "--max-inflight has no meaning with --policy none",
                "c.toml, line 3: `max-inflight` has no meaning with CLUSTERLB_POLICY none",
            ),
            (
                "the argument '--json' cannot be used with '--quiet'",
                "c.toml, line 4: the argument `json` cannot be used with '--quiet'",
            ),
            ("--policy-of-others is unknown -- so --", "--policy-of-others is unknown -- so --"),
        ] {
            let error = terms.translate(Error::usage(what, "leave --max-inflight out"));
            assert_eq!(error.to_string(), said);
            assert_eq!(error.hint(), "leave `max-inflight` out");
        }
    }
}
