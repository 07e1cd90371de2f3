//! Messages for the program's own primary when it does not run: one note per kind.
//!
//! Owns the kinds, and the remedy where the sender is known. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

/// Kinds with a note; further ones get none.
const KINDS_MAX: usize = 16;
/// Letters of a kind's name to show.
const NAME_LETTERS_MAX: usize = 40;
/// Keys in which programs name the kind of a message.
const NAMES: [&str; 7] = ["topic", "type", "cmd", "event", "action", "kind", "source"];
/// Messages that a worker is ready need no reader.
const UNASKED: [&str; 2] = ["ready", "online"];

/// Kinds seen so far.
#[derive(Debug, Default)]
pub(super) struct UnreadMessages {
    kinds: BTreeSet<String>,
}

impl UnreadMessages {
    /// The note about a message, if it is the first of its kind.
    pub(super) fn note(&mut self, message: &Value) -> Option<String> {
        let kind = kind_of(message)?;
        if self.kinds.len() >= KINDS_MAX || !self.kinds.insert(kind.clone()) {
            return None;
        }
        let remedy = match &*kind {
            "topic \"log4js:message\"" => {
                "log4js sends its lines to a primary that writes them: run that with --companion, \
                 set disableClustering: true, or omit --preload off"
            }
            "source \"_sac_adapter\"" => {
                "the cluster adapter of socket.io needs its primary, which calls setupPrimary(): \
                 run it with --companion"
            }
            _ => "run the program's own primary branch with --companion",
        };
        Some(format!("no process reads the workers' messages ({kind}); {remedy}"))
    }
}

fn kind_of(message: &Value) -> Option<String> {
    let shortened = |text: &str| text.chars().take(NAME_LETTERS_MAX).collect::<String>();
    match message {
        Value::String(text) if UNASKED.contains(&text.as_str()) => None,
        Value::String(text) => Some(format!("{:?}", shortened(text))),
        Value::Object(members) => {
            let is_named = |name: &&&str| members.get(**name).is_some_and(Value::is_string);
            let Some(name) = NAMES.iter().find(is_named) else { return Some("an object".into()) };
            let value = members[*name].as_str().unwrap_or_default();
            Some(format!("{name} {:?}", shortened(value)))
        }
        Value::Array(_) => Some("an array".into()),
        Value::Number(_) => Some("a number".into()),
        Value::Bool(_) => Some("a boolean".into()),
        Value::Null => Some("null".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_is_told_once() {
        let mut messages = UnreadMessages::default();
        for (message, told) in [
            (json!("ready"), None),
            (json!({ "topic": "log4js:message", "data": "1" }), Some("disableClustering")),
            (json!({ "topic": "log4js:message", "data": "2" }), None),
            (json!({ "type": 1, "cmd": "flush" }), Some("cmd \"flush\"")),
            (json!({ "source": "_sac_adapter", "type": 3 }), Some("setupPrimary")),
            (json!("flush"), Some("(\"flush\")")),
            (json!([1]), Some("an array")),
            (json!([2]), None),
            (json!({}), Some("an object")),
        ] {
            let text = messages.note(&message);
            match told {
                None => assert_eq!(text, None, "{message}"),
                Some(told) => assert!(text.is_some_and(|text| text.contains(told)), "{message}"),
            }
        }
    }

    #[test]
    fn kinds_are_bounded_and_so_are_their_names() {
        let mut messages = UnreadMessages::default();
        let told = (0..100).filter_map(|number| messages.note(&json!(format!("{number:0>100}"))));
        assert_eq!(told.count(), 1, "their first letters are the same");
        let told = (0..100).filter_map(|number| messages.note(&json!(format!("{number}"))));
        assert_eq!(told.count(), KINDS_MAX - 1);
    }
}
