//! What an engine tells while it works on an image: a line for each layer. In a terminal the lines stay where they are
//! and change, as Docker's do; elsewhere each new step is a line of its own.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use bytesize::ByteSize;
use serde_json::Value;

use super::super::client::Streamed;
use super::super::error::CliError;
use super::super::output;

/// Longest line of a progress stream.
const MAX_LINE: usize = 1 << 20;
/// Characters between the brackets of a bar; Docker's.
const BAR: usize = 50;

/// Shows the answer as it comes.
///
/// # Errors
/// What the engine says went wrong, and an answer that is none.
pub(super) async fn show(mut answer: Streamed) -> Result<(), CliError> {
    let mut buffer = Vec::new();
    let mut view = View::of_output();
    while let Some(piece) = answer.next().await? {
        buffer.extend_from_slice(&piece);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            output::text(&view.say(&line)?)?;
        }
        if buffer.len() > MAX_LINE {
            return Err(CliError::Failed("the engine's answer has a line without end".to_owned()));
        }
    }
    output::text(&view.say(&buffer)?)
}

/// What is on the screen.
#[derive(Debug, Default)]
struct View {
    /// Columns and rows, in a terminal.
    terminal: Option<(usize, usize)>,
    /// Layers in the order of their lines.
    lines: Vec<String>,
    /// The last step of each: elsewhere its counts are not said again and again.
    steps: BTreeMap<String, String>,
}

impl View {
    fn of_output() -> Self {
        let stdout = std::io::stdout();
        let size = || rustix::termios::tcgetwinsize(&stdout).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        let terminal = if stdout.is_terminal() { size() } else { None };
        Self { terminal: terminal.map(|size| (size.ws_col.into(), size.ws_row.into())), ..Self::default() }
    }

    /// What one line of the answer puts on the screen.
    fn say(&mut self, line: &[u8]) -> Result<String, CliError> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(String::new());
        }
        let said: Value = serde_json::from_slice(line)
            .map_err(|e| CliError::Failed(format!("the engine's answer has bad JSON: {e}")))?;
        if let Some(error) = said["errorDetail"]["message"].as_str().or_else(|| said["error"].as_str()) {
            return Err(CliError::Failed(error.to_owned()));
        }
        if let (Some(id), Some(step)) = (said["id"].as_str(), said["status"].as_str())
            && said["progressDetail"].is_object()
        {
            return Ok(self.layer(id, step, &said["progressDetail"]));
        }
        // What follows is about all layers.
        self.lines.clear();
        let text = said["stream"].as_str().or_else(|| said["status"].as_str());
        Ok(text.map(|text| format!("{}\n", output::printable(text.trim_end()))).unwrap_or_default())
    }

    fn layer(&mut self, id: &str, step: &str, detail: &Value) -> String {
        let text = output::printable(&format!("{id}: {step}")).to_string();
        let Some((columns, rows)) = self.terminal else {
            let news = self.steps.insert(id.to_owned(), step.to_owned()).as_deref() != Some(step);
            return if news { format!("{text}\n") } else { String::new() };
        };
        let bar = match (detail["current"].as_u64(), detail["total"].as_u64()) {
            (Some(current), Some(total)) if total > 0 => bar(current, total),
            _ => String::new(),
        };
        // A line that is broken into two would put all others in the wrong place.
        let text: String = format!("{text}{bar}").chars().take(columns - 1).collect();
        match self.lines.iter().position(|known| known == id) {
            None => {
                self.lines.push(id.to_owned());
                format!("{text}\n")
            }
            // Nothing above the screen can be changed.
            Some(place) if self.lines.len() - place >= rows => String::new(),
            Some(place) => {
                let up = self.lines.len() - place;
                format!("\x1b[{up}A\r\x1b[2K{text}\x1b[{up}B\r")
            }
        }
    }
}

/// ` [====>   ]  1.0 MiB/4.0 MiB`
fn bar(current: u64, total: u64) -> String {
    let done = (u128::from(current.min(total)) * BAR as u128 / u128::from(total)) as usize;
    let head = if done < BAR { ">" } else { "" };
    let bar = format!("{}{head}", "=".repeat(done));
    format!(" [{bar:<BAR$}]  {}/{}", ByteSize(current), ByteSize(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [&str; 7] = [
        r#"{"status":"Pulling from web","id":"1"}"#,
        r#"{"status":"Pulling fs layer","progressDetail":{},"id":"a"}"#,
        r#"{"status":"Pulling fs layer","progressDetail":{},"id":"b"}"#,
        r#"{"status":"Downloading","progressDetail":{"current":524288,"total":1048576},"id":"a"}"#,
        r#"{"status":"Downloading","progressDetail":{"current":1048576,"total":1048576},"id":"a"}"#,
        r#"{"status":"Pull complete","progressDetail":{},"id":"b"}"#,
        r#"{"status":"Digest: sha256:1"}"#,
    ];

    fn said(terminal: Option<(usize, usize)>) -> Vec<String> {
        let mut view = View { terminal, ..View::default() };
        STEPS.iter().map(|line| view.say(line.as_bytes()).unwrap()).collect()
    }

    #[test]
    fn elsewhere_each_step_is_a_line() {
        let all = said(None).concat();
        let lines = ["Pulling from web", "a: Pulling fs layer", "b: Pulling fs layer", "a: Downloading"];
        assert_eq!(all, format!("{}\nb: Pull complete\nDigest: sha256:1\n", lines.join("\n")));
    }

    #[test]
    fn in_a_terminal_lines_change_where_they_are() {
        let all = said(Some((100, 40)));
        let half = format!("{}>{}", "=".repeat(25), " ".repeat(24));
        assert_eq!(all[3], format!("\x1b[2A\r\x1b[2Ka: Downloading [{half}]  512.0 KiB/1.0 MiB\x1b[2B\r"));
        assert!(all[4].contains(&format!("[{}]", "=".repeat(50))), "{:?}", all[4]);
        assert_eq!(all[5], "\x1b[1A\r\x1b[2Kb: Pull complete\x1b[1B\r");
        assert_eq!(all[6], "Digest: sha256:1\n");
        // Neither is a line broken, nor one changed that is not on the screen any more.
        let narrow = said(Some((12, 2)));
        assert_eq!((narrow[1].as_str(), narrow[3].as_str()), ("a: Pulling \n", ""));
        assert_eq!(narrow[5], "\x1b[1A\r\x1b[2Kb: Pull com\x1b[1B\r");
    }

    #[test]
    fn failures_and_nonsense_are_said() {
        let mut view = View::default();
        let failed = view.say(br#"{"errorDetail":{"message":"no"},"error":"no"}"#).unwrap_err();
        assert!(failed.to_string().contains("no"));
        assert!(view.say(b"{").is_err());
        assert_eq!(view.say(b"\r\n").unwrap(), "");
        assert_eq!(view.say(br#"{"status":"x\u001b[2J"}"#).unwrap(), "x [2J\n");
    }
}
