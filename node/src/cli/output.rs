//! All that commands print: results to standard output, remarks to standard error.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};

use super::error::CliError;

/// How a list is printed.
#[derive(clap::Args, Clone, Debug, Default)]
pub(in crate::cli) struct ListFormat {
    /// Print IDs only
    #[arg(short, long)]
    pub(in crate::cli) quiet: bool,
    /// "table", "json" (one object a line), or a template such as '{{.ID}} {{.Name}}'
    #[arg(long, value_name = "FORMAT", conflicts_with = "quiet")]
    pub(in crate::cli) format: Option<String>,
    /// Do not shorten IDs and messages
    #[arg(long)]
    pub(in crate::cli) no_trunc: bool,
}

impl ListFormat {
    /// An id, shortened as Docker does in lists.
    pub(in crate::cli) fn id(&self, id: &str) -> String {
        if self.no_trunc { id.to_owned() } else { id.chars().take(12).collect() }
    }
}

/// A list: columns with their title and their key, and rows with a cell for each column.
#[derive(Debug)]
pub(in crate::cli) struct List {
    columns: Vec<(&'static str, &'static str)>,
    rows: Vec<Vec<String>>,
}

impl List {
    /// An empty list; the first column's cells are what `--quiet` prints.
    pub(in crate::cli) fn new(columns: &[(&'static str, &'static str)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(in crate::cli) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        self.rows.push(row);
    }

    /// Prints it as the user wants it.
    ///
    /// # Errors
    /// On a template that names no column, and when the output cannot be written.
    pub(in crate::cli) fn print(&self, format: &ListFormat) -> Result<(), CliError> {
        text(&self.render(format)?)
    }

    pub(in crate::cli) fn render(&self, format: &ListFormat) -> Result<String, CliError> {
        if format.quiet {
            return Ok(self.rows.iter().map(|r| format!("{}\n", for_programs(&r[0]))).collect());
        }
        match format.format.as_deref() {
            None | Some("table") => Ok(self.table()),
            Some("json" | "{{json .}}") => Ok(self.rows.iter().map(|row| format!("{}\n", self.object(row))).collect()),
            Some(template) => {
                let template = template.replace("\\t", "\t").replace("\\n", "\n");
                self.rows.iter().map(|row| Ok(self.fill(&template, row)? + "\n")).collect()
            }
        }
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(self.columns.iter().map(|(title, _)| *title).collect::<Vec<_>>());
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        table.trim_fmt() + "\n"
    }

    fn object(&self, row: &[String]) -> Value {
        let cells = self.columns.iter().zip(row).map(|((_, key), cell)| ((*key).to_owned(), for_programs(cell).into()));
        Value::Object(cells.collect::<Map<_, _>>())
    }

    fn fill(&self, template: &str, row: &[String]) -> Result<String, CliError> {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            out.push_str(before);
            let known = || self.columns.iter().map(|(_, key)| format!("{{{{.{key}}}}}")).collect::<Vec<_>>().join(" ");
            let (word, after) = after
                .split_once("}}")
                .ok_or_else(|| CliError::usage(format!("--format: {{{{ is not closed in {template:?}")))?;
            let key = word.trim().trim_start_matches('.');
            let column = self.columns.iter().position(|(_, k)| *k == key).ok_or_else(|| {
                CliError::usage(format!("--format: there is no {{{{{word}}}}}; there are {}", known()))
            })?;
            out.push_str(for_programs(&row[column]));
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// A table of columns that only the engine knows.
pub(in crate::cli) fn plain_table(titles: &[String], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(titles.iter().map(|title| printable(title)).collect::<Vec<_>>());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

/// The star that marks the own node, and the branch that marks an older task, are for people.
fn for_programs(cell: &str) -> &str {
    cell.strip_suffix(" *").unwrap_or(cell).trim_start_matches(" \\_ ")
}

/// What is safe to send to a terminal: control characters, which could play tricks there, become blanks.
pub(in crate::cli) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prints a line.
///
/// # Errors
/// When the output cannot be written; so for all functions here.
pub(in crate::cli) fn line(line: impl Display) -> Result<(), CliError> {
    text(&format!("{line}\n"))
}

/// Prints text as it is.
pub(in crate::cli) fn text(text: &str) -> Result<(), CliError> {
    raw(text.as_bytes())
}

/// Prints bytes as they are.
pub(in crate::cli) fn raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Prints an object for programs, indented as Docker does.
pub(in crate::cli) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).map_err(|e| CliError::Failed(format!("cannot write JSON: {e}")))?;
    bytes.push(b'\n');
    raw(&bytes)
}

/// Says something that is not the result. Nobody may be listening.
pub(in crate::cli) fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> List {
        let mut list = List::new(&[("ID", "ID"), ("NAME", "Name"), ("PORTS", "Ports")]);
        list.row(["a1 *".to_owned(), "web".to_owned(), String::new()]);
        list.row(["b2".to_owned(), "x\u{1b}[2J".to_owned(), "*:80->80/tcp".to_owned()]);
        list
    }

    #[track_caller]
    fn check(quiet: bool, format: Option<&str>, expected: &str) {
        let format = ListFormat { quiet, format: format.map(str::to_owned), no_trunc: false };
        assert_eq!(list().render(&format).unwrap(), expected);
    }

    #[test]
    fn lists_are_for_people_and_programs() {
        check(false, None, "ID     NAME    PORTS\na1 *   web\nb2     x [2J   *:80->80/tcp\n");
        check(true, None, "a1\nb2\n");
        check(false, Some("{{.Name}}\\t{{ .ID }}!"), "web\ta1!\nx\u{1b}[2J\tb2!\n");
        check(
            false,
            Some("json"),
            "{\"ID\":\"a1\",\"Name\":\"web\",\"Ports\":\"\"}\n\
             {\"ID\":\"b2\",\"Name\":\"x\\u001b[2J\",\"Ports\":\"*:80->80/tcp\"}\n",
        );
    }

    #[test]
    fn a_template_that_names_nothing_is_refused() {
        for bad in ["{{.Nmae}}", "{{.ID"] {
            let format = ListFormat { format: Some(bad.to_owned()), ..ListFormat::default() };
            assert_eq!(list().render(&format).unwrap_err().code(), 2, "{bad}");
        }
    }
}
