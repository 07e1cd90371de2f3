//! Common parts of an HTML page: head, style, tables, warnings, environment. Pure.
//!
//! A page is a single self-contained file without scripts. All external text is escaped here.

use std::fmt::Write as _;

use super::super::environment::Environment;
use super::table::{column_widths, folds};
use crate::sys::cpu::format_cpu_list;

/// Style of a page: readable on a phone, in light and dark mode, and in print.
const STYLE: &str = "\
:root{--ink:#1b1b1b;--faint:#666;--paper:#fff;--line:#ddd;--band:#f5f6f8;--warn:#fff4d6;\
--edge:#c98a00;color-scheme:light dark}\
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--faint:#a2a2a2;--paper:#16181b;\
--line:#383c42;--band:#1f2226;--warn:#3a3013;--edge:#d9a520}}\
*{box-sizing:border-box}\
body{margin:0 auto;padding:1.2rem;max-width:75rem;background:var(--paper);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif}\
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0}\
h2{font-size:1.25rem;margin:2.2rem 0 .4rem;border-bottom:1px solid var(--line)}\
h3{font-size:1rem;margin:1.2rem 0 .2rem}\
p{max-width:46rem;margin:.5rem 0}.faint{color:var(--faint)}\
.warn{background:var(--warn);border-left:4px solid var(--edge);padding:.5rem .8rem;\
margin:.8rem 0;max-width:46rem}.warn p{margin:.2rem 0}\
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));\
gap:1rem 1.6rem}\
figure{margin:.4rem 0;break-inside:avoid}figcaption{font-weight:600;margin-bottom:.2rem}\
svg{display:block;width:100%;height:auto;max-width:38rem}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem;\
white-space:nowrap;margin:.4rem 0}\
th,td{padding:.18rem .6rem;text-align:right;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}\
thead th{border-bottom:2px solid var(--line);font-weight:600}\
dl{display:grid;grid-template-columns:minmax(7rem,auto) 1fr;gap:.15rem 1rem;font-size:.9rem;\
max-width:46rem}dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}\
@media(max-width:30rem){body{padding:.8rem;font-size:15px}th,td{padding:.15rem .4rem}}\
@media print{:root{--ink:#000;--faint:#444;--paper:#fff;--line:#bbb;--warn:#fff}\
body{max-width:none;padding:0;font-size:10pt}table{font-size:7.5pt}\
h2,h3,h2+p,h3+p{break-after:avoid}.scroll{overflow:visible}}";

/// Text escaped for an element or an attribute. A percent sign stays on the line of its number.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.replace(" %", "\u{a0}%").chars() {
        match letter {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            letter if letter.is_control() => safe.push(' '),
            letter => safe.push(letter),
        }
    }
    safe
}

/// A complete page.
#[must_use]
pub fn page(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n\
         </html>\n"
    )
}

/// A paragraph. A name before a leading colon is set in bold.
#[must_use]
pub fn paragraph(text: &str) -> String {
    match text.split_once(": ") {
        Some((name, rest)) if name.len() <= 24 && !name.contains(' ') => {
            format!("<p><b>{}</b>: {}</p>\n", escaped(name), escaped(rest))
        }
        _ => format!("<p>{}</p>\n", escaped(text)),
    }
}

/// A chart with its heading.
#[must_use]
pub fn figure(heading: &str, svg: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>\n{svg}</figure>\n", escaped(heading))
}

/// Width of a page's text on a screen of 1280 pixels, less what browsers differ by.
const PAGE_PX: usize = 1120;
/// A character of a table, and the space around a cell, at most.
const CHARACTER_PX: usize = 8;
const AROUND_CELL_PX: usize = 20;

/// A table. Columns beyond the width of a page follow below, behind the first one once more; on a
/// narrower screen it scrolls horizontally.
#[must_use]
pub fn table<'a>(
    headings: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    table_with_keys(1, headings, rows)
}

/// The same, where it takes as many columns to name a row.
#[must_use]
pub fn table_with_keys<'a>(
    keys: usize,
    headings: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let headings: Vec<String> = headings.into_iter().map(str::to_owned).collect();
    let all: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
    let widths = column_widths(&all).into_iter().map(|width| width * CHARACTER_PX + AROUND_CELL_PX);
    let widths: Vec<usize> = widths.collect();
    let folds = folds(&widths, keys, PAGE_PX).into_iter().map(|columns| {
        let part = |row: &Vec<String>| {
            let cells = row.iter().enumerate();
            let cells = cells.filter(|(place, _)| *place < keys || columns.contains(place));
            cells.map(|(_, cell)| escaped(cell)).collect::<Vec<String>>()
        };
        fold(&all.iter().map(part).collect::<Vec<_>>())
    });
    folds.collect()
}

/// A table of cells that are escaped, the first row of which are the headings.
fn fold(rows: &[Vec<String>]) -> String {
    let mut text = "<div class=\"scroll\"><table>\n<thead><tr>".to_owned();
    let (headings, rows) = rows.split_first().expect("there are headings");
    for heading in headings {
        let _ = write!(text, "<th>{heading}</th>");
    }
    text += "</tr></thead>\n<tbody>\n";
    for row in rows {
        text += "<tr>";
        for cell in row {
            let _ = write!(text, "<td>{cell}</td>");
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table></div>\n"
}

/// Warnings to read before the figures; empty if there are none.
#[must_use]
pub fn warnings<'a>(lines: impl IntoIterator<Item = &'a String>) -> String {
    let lines: Vec<String> =
        lines.into_iter().map(|line| format!("<p>{}</p>\n", escaped(line))).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("<div class=\"warn\">\n{}</div>\n", lines.concat())
}

/// The machine, the build, the programs.
#[must_use]
pub fn environment(environment: &Environment) -> String {
    let mut text = "<h2>Environment</h2>\n<dl>\n".to_owned();
    let mut entry = |name: &str, value: &str| {
        let _ = writeln!(text, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
    };
    let Environment { version, commit, build_profile, placement, .. } = environment;
    entry("command", &environment.command);
    entry("clusterlb", &format!("{version}, commit {commit}, {build_profile} build"));
    for (name, version) in &environment.peers {
        entry(name, version);
    }
    entry("kernel", &environment.kernel);
    entry("CPU", &environment.cpu_model);
    entry("allowed CPUs", &format_cpu_list(&environment.allowed_cpus));
    let on = |cpus: &[usize]| match cpus {
        [] => "not pinned".to_owned(),
        cpus => format_cpu_list(cpus),
    };
    entry("server on", &on(&placement.server_cpus));
    entry("generator on", &on(&placement.load_cpus));
    entry("governor", &environment.governor);
    entry("io_uring", &environment.io_uring);
    entry("descriptors", &environment.descriptors_max.to_string());
    entry("load before", &environment.load_average);
    for (name, value) in &environment.sysctls {
        entry(name, value);
    }
    text + "</dl>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let text = page("<b>", &paragraph("a <script>"));
        assert!(text.contains("<title>&lt;b&gt;</title>") && text.contains("a &lt;script&gt;"));
        assert!(table(["a"], [vec!["\"<".to_owned()]]).contains("&quot;&lt;"));
        assert_eq!(escaped("70 % of\tit"), "70\u{a0}% of it");
        assert!(figure("<i>", "<svg/>").contains("&lt;i&gt;"));
        assert_eq!(warnings(&[]), "");
        assert!(warnings(&["a & b".to_owned()]).contains("a &amp; b"));
    }

    #[test]
    fn a_name_before_a_colon_stands_out() {
        assert!(paragraph("none:epoll: as it is").starts_with("<p><b>none:epoll</b>: as"));
        assert_eq!(paragraph("In none: of them"), "<p>In none: of them</p>\n");
    }
}
