//! The dashboard of a run: the last lines of a terminal, below all that was printed.
//!
//! It draws and does nothing else. It takes no input, so Ctrl-C is what it always is; it hides no cursor and leaves no
//! screen for another. However the program ends, there is nothing to put back: the last picture stays, and whoever
//! writes next writes below it.

use std::io::{self, BufWriter, Stderr, Write};
use std::time::{Duration, Instant};

use blockformer::train::MetricsRow;
use ratatui::backend::{Backend, ClearType, WindowSize};
use ratatui::buffer::Cell;
use ratatui::layout::{Constraint, Layout, Position, Rect, Size};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Chart, Dataset, Gauge, GraphType, Paragraph, Widget};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};

use super::progress::{clock, tokens_per_second};

const HEIGHT: u16 = 14;
/// What the numbers need beside the curve.
const NUMBERS: u16 = 30;
/// Terminals below this get lines.
const SMALLEST: Size = Size { width: 60, height: HEIGHT + 2 };
/// Time between pictures.
const REST: Duration = Duration::from_millis(100);
/// Steps that speed and loss are averaged over.
const RECENT: usize = 20;
/// Points of the curve.
const POINTS: usize = 160;

/// Where a run stands.
pub(super) struct Status<'a> {
    /// A row a step.
    pub(super) rows: &'a [MetricsRow],
    /// Where the run ends.
    pub(super) end: usize,
    /// Since it began, or went on.
    pub(super) seconds: Duration,
    pub(super) seconds_left: f64,
}

pub(super) struct Dashboard<B: Backend = Ansi<BufWriter<Stderr>>> {
    terminal: Terminal<B>,
    drawn: Option<Instant>,
}

impl Dashboard {
    /// On standard error; none where it is no terminal, or one too small.
    pub(super) fn open() -> Option<Self> {
        let backend = Ansi { out: BufWriter::new(io::stderr()), size: size_of_stderr };
        let size = size_of_stderr()?;
        if size.width < SMALLEST.width || size.height < SMALLEST.height {
            return None;
        }
        Self::on(backend).ok()
    }
}

impl<B: Backend> Dashboard<B> {
    fn on(backend: B) -> Result<Self, B::Error> {
        let options = TerminalOptions { viewport: Viewport::Inline(HEIGHT) };
        Ok(Self { terminal: Terminal::with_options(backend, options)?, drawn: None })
    }

    /// Draws, unless it did just now and need not.
    pub(super) fn draw(&mut self, status: &Status<'_>, must: bool) -> Result<(), B::Error> {
        if !must && self.drawn.is_some_and(|drawn| drawn.elapsed() < REST) {
            return Ok(());
        }
        self.terminal.draw(|frame| render(frame, status))?;
        self.drawn = Some(Instant::now());
        Ok(())
    }

    /// Puts a line above, which stays; one wider than the terminal goes on in the next.
    pub(super) fn say(&mut self, line: &str) -> Result<(), B::Error> {
        let width = usize::from(self.terminal.get_frame().area().width).max(1);
        let characters: Vec<char> = line.chars().collect();
        let lines: Vec<Line<'_>> = characters.chunks(width).map(|part| Line::from(String::from_iter(part))).collect();
        self.terminal.insert_before(lines.len().max(1) as u16, |buffer| {
            Paragraph::new(lines).render(buffer.area, buffer);
        })
    }
}

/// The whole picture; its last line is empty and has the cursor.
fn render(frame: &mut Frame<'_>, status: &Status<'_>) {
    let rows = [Constraint::Length(1), Constraint::Min(1), Constraint::Length(1), Constraint::Length(1)];
    let [progress, middle, hint, cursor] = Layout::vertical(rows).areas(frame.area());
    let [curve, numbers] = Layout::horizontal([Constraint::Min(1), Constraint::Length(NUMBERS)]).areas(middle);
    let step = status.rows.last().map_or(0, |row| row.step);
    let gauge = Gauge::default()
        .gauge_style(Style::new().fg(Color::Cyan).bg(Color::DarkGray))
        .ratio((step as f64 / status.end.max(1) as f64).clamp(0.0, 1.0))
        .label(format!("step {step} of {}, {} left", status.end, clock(status.seconds_left)));
    frame.render_widget(gauge, progress);
    draw_curve(frame, curve, status.rows);
    frame.render_widget(Paragraph::new(lines(status)), numbers);
    frame.render_widget(Line::from("Ctrl-C writes a checkpoint and stops").dim(), hint);
    frame.set_cursor_position(Position::new(cursor.x, cursor.y));
}

/// The numbers beside the curve.
fn lines(status: &Status<'_>) -> Vec<Line<'static>> {
    let Some(last) = status.rows.last() else { return vec![Line::from("the first step …")] };
    let recent = &status.rows[status.rows.len().saturating_sub(RECENT)..];
    let loss = recent.iter().map(|row| row.loss).sum::<f64>() / recent.len() as f64;
    let validation = status.rows.iter().rev().find_map(|row| row.validation_loss);
    let memory = last.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20));
    let unknown = || "-".to_string();
    let numbers = [
        ("loss", format!("{loss:.4}")),
        ("validation loss", validation.map_or_else(unknown, |loss| format!("{loss:.4}"))),
        ("learning rate", format!("{:.2e}", last.learning_rate)),
        ("gradient norm", format!("{:.3}", last.gradient_norm)),
        ("tokens/s", format!("{:.0}", tokens_per_second(recent))),
        ("tokens", last.tokens.to_string()),
        ("data wait", format!("{:.1} %", 100.0 * last.data_wait)),
        ("memory", memory.unwrap_or_else(unknown)),
        ("time", clock(status.seconds.as_secs_f64())),
    ];
    numbers.into_iter().map(|(name, value)| Line::from(format!("  {name:<16}{value:>11}"))).collect()
}

fn draw_curve(frame: &mut Frame<'_>, area: Rect, rows: &[MetricsRow]) {
    let training = curve(rows);
    let validation: Vec<(f64, f64)> =
        rows.iter().filter_map(|row| row.validation_loss.map(|loss| (row.step as f64, loss))).collect();
    let losses = || training.iter().chain(&validation).map(|point| point.1).filter(|loss| loss.is_finite());
    let (lowest, highest) = losses().fold((f64::MAX, f64::MIN), |(low, high), loss| (low.min(loss), high.max(loss)));
    let (first, last) = match rows {
        [first, .., last] if lowest <= highest => (first.step as f64, last.step as f64),
        _ => return, // no curve yet
    };
    let margin = ((highest - lowest) * 0.05).max(1e-3);
    // Losses are not negative, nor should their axis be.
    let (lowest, highest) = ((lowest - margin).max(lowest.min(0.0)), highest + margin);
    let label = |loss: f64| format!("{loss:.2}");
    let x = Axis::default().bounds([first, last]).labels([format!("{first}"), format!("{last}")]);
    let y = Axis::default()
        .bounds([lowest, highest])
        .labels([label(lowest), label((lowest + highest) / 2.0), label(highest)])
        .title("loss");
    let line =
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(Color::Cyan).data(&training);
    let points = Dataset::default().marker(Marker::Dot).style(Color::Yellow).data(&validation);
    frame.render_widget(Chart::new(vec![line, points]).x_axis(x).y_axis(y), area);
}

/// The losses of training: means over stretches of steps, so that there are not more points than can be seen.
fn curve(rows: &[MetricsRow]) -> Vec<(f64, f64)> {
    let stretch = rows.len().div_ceil(POINTS).max(1);
    let mean =
        |rows: &[MetricsRow], value: fn(&MetricsRow) -> f64| rows.iter().map(value).sum::<f64>() / rows.len() as f64;
    rows.chunks(stretch).map(|rows| (mean(rows, |row| row.step as f64), mean(rows, |row| row.loss))).collect()
}

/// A terminal that is spoken to in the escape sequences all have in common.
///
/// Its cursor is put into the last line when a picture begins, and is never hidden. So it need not be asked where the
/// cursor is, which some do not answer and which takes input that is not ours.
pub(super) struct Ansi<W> {
    out: W,
    size: fn() -> Option<Size>,
}

/// The size of the terminal that is standard error.
fn size_of_stderr() -> Option<Size> {
    let (width, height) = terminal_size::terminal_size_of(io::stderr())?;
    Some(Size::new(width.0, height.0))
}

impl<W: Write> Ansi<W> {
    /// Colours and weight of what is written next.
    fn style(&mut self, cell: &Cell) -> io::Result<()> {
        write!(self.out, "\x1b[0m")?;
        if cell.modifier.contains(Modifier::DIM) {
            write!(self.out, "\x1b[2m")?;
        }
        for (colour, base) in [(cell.fg, 30), (cell.bg, 40)] {
            match colour {
                Color::Cyan => write!(self.out, "\x1b[{}m", base + 6)?,
                Color::Yellow => write!(self.out, "\x1b[{}m", base + 3)?,
                Color::DarkGray => write!(self.out, "\x1b[{}m", base + 60)?,
                _ => {} // the terminal's own
            }
        }
        Ok(())
    }
}

impl<W: Write> Backend for Ansi<W> {
    type Error = io::Error;

    fn draw<'a, I: Iterator<Item = (u16, u16, &'a Cell)>>(&mut self, content: I) -> io::Result<()> {
        let mut last: Option<(u16, u16, &Cell)> = None;
        for (x, y, cell) in content {
            if last.is_none_or(|(x_before, y_before, _)| (x_before + 1, y_before) != (x, y)) {
                self.set_cursor_position((x, y))?;
            }
            let same = |before: &Cell| (before.fg, before.bg, before.modifier) == (cell.fg, cell.bg, cell.modifier);
            if !last.is_some_and(|(_, _, before)| same(before)) {
                self.style(cell)?;
            }
            write!(self.out, "{}", cell.symbol())?;
            last = Some((x, y, cell));
        }
        write!(self.out, "\x1b[0m")
    }

    fn append_lines(&mut self, n: u16) -> io::Result<()> {
        (0..n).try_for_each(|_| writeln!(self.out))?;
        self.flush()
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        let last = Position::new(0, self.size()?.height.saturating_sub(1));
        self.set_cursor_position(last)?;
        Ok(last)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        let Position { x, y } = position.into();
        write!(self.out, "\x1b[{};{}H", y + 1, x + 1)
    }

    fn clear(&mut self) -> io::Result<()> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, clear_type: ClearType) -> io::Result<()> {
        let sequence = match clear_type {
            ClearType::All => "2J",
            ClearType::AfterCursor => "J",
            ClearType::BeforeCursor => "1J",
            ClearType::CurrentLine => "2K",
            ClearType::UntilNewLine => "K",
        };
        write!(self.out, "\x1b[{sequence}")
    }

    fn size(&self) -> io::Result<Size> {
        (self.size)().ok_or_else(|| io::Error::other("the terminal does not tell its size"))
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::ZERO })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;

    fn row(step: usize, loss: f64, validation_loss: Option<f64>) -> MetricsRow {
        MetricsRow {
            step,
            tokens: 100 * step,
            loss,
            validation_loss,
            learning_rate: 1e-3,
            gradient_norm: 0.25,
            loss_scale: 1.0,
            batch_size: 4,
            tokens_per_second: 1234.0,
            data_wait: 0.0125,
            memory_bytes: Some(300 << 20),
        }
    }

    fn screen(dashboard: &Dashboard<TestBackend>) -> Vec<String> {
        let buffer = dashboard.terminal.backend().buffer();
        let width = usize::from(buffer.area.width);
        let symbols: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
        symbols.chunks(width).map(|line| line.concat().trim_end().to_string()).collect()
    }

    #[test]
    fn the_picture_has_the_numbers_and_the_curve_in_the_last_lines() {
        let rows: Vec<MetricsRow> =
            (1..=500).map(|step| row(step, 1.0 + 4.0 / step as f64, (step == 400).then_some(1.5))).collect();
        let mut terminal = TestBackend::new(90, 30);
        terminal.set_cursor_position((0, 29)).unwrap();
        let mut dashboard = Dashboard::on(terminal).unwrap();
        dashboard.say("validation 1.500").unwrap();
        let status = Status { rows: &rows, end: 1000, seconds: Duration::from_secs(61), seconds_left: 3661.0 };
        dashboard.draw(&status, true).unwrap();
        let lines = screen(&dashboard);
        let height = usize::from(HEIGHT);
        assert_eq!(lines[30 - height - 1], "validation 1.500");
        assert!(lines[30 - height].contains("step 500 of 1000, 1:01:01 left"), "{lines:#?}");
        let number = |name: &str| {
            let line = lines.iter().find(|line| line.contains(&format!("  {name} "))).expect(name);
            line.split_whitespace().last().expect("a value").to_string()
        };
        // The mean of the last 20 losses: 1 + 4 · mean of 1 / step.
        let mean = (481..=500).map(|step| 1.0 + 4.0 / f64::from(step)).sum::<f64>() / 20.0;
        assert_eq!(number("loss"), format!("{mean:.4}"));
        assert_eq!(number("validation loss"), "1.5000");
        assert_eq!((number("learning rate"), number("tokens/s")), ("1.00e-3".into(), "1234".into()));
        assert_eq!((number("tokens"), number("time")), ("50000".into(), "0:01:01".into()));
        let has = |what: fn(char) -> bool| lines.iter().any(|line| line.chars().any(what));
        assert!(has(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "no curve: {lines:#?}");
        assert!(has(|c| c == '•'), "no point of validation: {lines:#?}");
        assert_eq!(lines[29], "", "the line for what comes next");
        assert_eq!(dashboard.terminal.backend().cursor_position(), Position::new(0, 29));
        assert!(dashboard.terminal.backend().cursor_visible());
    }

    #[test]
    fn a_line_wider_than_the_terminal_is_not_cut() {
        let mut dashboard = Dashboard::on(TestBackend::new(60, 30)).unwrap();
        dashboard.say(&format!("step 250 {} left", "x".repeat(120))).unwrap();
        let lines = screen(&dashboard).join("");
        assert!(lines.contains("step 250 xxx") && lines.contains("xxx left"), "{lines}");
        assert_eq!(lines.matches('x').count(), 120);
    }

    #[test]
    fn a_run_without_a_step_or_with_a_loss_that_is_no_number_is_drawn() {
        let mut dashboard = Dashboard::on(TestBackend::new(60, 20)).unwrap();
        for rows in [vec![], vec![row(1, 2.0, None)], (1..4).map(|step| row(step, f64::NAN, None)).collect()] {
            let status = Status { rows: &rows, end: 10, seconds: Duration::ZERO, seconds_left: f64::NAN };
            dashboard.draw(&status, true).unwrap();
            assert!(screen(&dashboard).iter().any(|line| line.contains(" of 10")));
        }
    }

    #[test]
    fn cells_are_written_where_they_are_and_their_style_once() {
        let mut terminal = Ansi { out: Vec::new(), size: || Some(Size::new(20, 5)) };
        let mut cells = ["a", "b", "c"].map(Cell::new);
        cells[0].fg = Color::Cyan;
        cells[1].fg = Color::Cyan;
        cells[2].modifier = Modifier::DIM;
        terminal.draw([(2, 1, &cells[0]), (3, 1, &cells[1]), (0, 4, &cells[2])].into_iter()).unwrap();
        assert_eq!(terminal.get_cursor_position().unwrap(), Position::new(0, 4));
        let written = String::from_utf8(terminal.out).unwrap();
        assert_eq!(written, "\x1b[2;3H\x1b[0m\x1b[36mab\x1b[5;1H\x1b[0m\x1b[2mc\x1b[0m\x1b[5;1H");
    }

    #[test]
    fn a_long_run_has_a_curve_of_few_points() {
        let rows: Vec<MetricsRow> = (1..=1000).map(|step| row(step, step as f64, None)).collect();
        let points = curve(&rows);
        assert!(points.len() <= POINTS && points.len() > POINTS / 2);
        assert!(points.iter().all(|(step, loss)| step == loss));
        assert_eq!(points[0], (4.0, 4.0)); // steps 1 to 7
    }
}
