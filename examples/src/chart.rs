//! Draws how a training went: loss by step, accuracy by epoch, as one SVG picture.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    BLACK, Cartesian2d, Circle, Color, DrawingArea, DrawingAreaErrorKind, EmptyElement,
    IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{IntoFont, TextStyle};

use crate::cli::writable;
use crate::report::Curves;

const BLUE: RGBColor = RGBColor(31, 102, 173);
const PALE: RGBColor = RGBColor(173, 203, 232);
const ORANGE: RGBColor = RGBColor(196, 88, 12);
const GRID: RGBColor = RGBColor(228, 228, 228);
const SIZE: (u32, u32) = (960, 400);
/// Room for the last accuracy beside its point.
const LABEL: u32 = 68;

type Panel<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawing<T> = std::result::Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Finds out, before the work is done, whether a picture can be written to `path`. Creates the file.
///
/// # Errors
/// It cannot, or is not named as a picture of this kind.
pub fn prepare(path: &Path) -> Result<()> {
    if path.extension().is_none_or(|ending| ending != "svg") {
        bail!(
            "the picture is an SVG: {} should end in .svg",
            path.display()
        );
    }
    writable(path)
}

/// Draws `curves` into the file at `path`, under `title`.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, title: &str, curves: &Curves) -> Result<()> {
    let mut picture = String::new();
    let area = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
    paint(&area, title, curves).with_context(|| format!("cannot draw {}", path.display()))?;
    drop(area);
    fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))
}

fn paint(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    curves: &Curves,
) -> Drawing<()> {
    area.fill(&WHITE)?;
    let area = area.titled(title, font(20))?;
    let (left, right) = area.split_horizontally(SIZE.0 / 2);
    let epochs = curves.accuracies.len().max(1) as f64;
    let per_epoch = curves.losses.len().max(1) as f64 / epochs;

    let losses: Vec<(f64, f64)> = curves
        .losses
        .iter()
        .enumerate()
        .map(|(step, &loss)| ((step as f64 + 0.5) / per_epoch, f64::from(loss)))
        .collect();
    let smooth = running_mean(&losses, (per_epoch / 4.0).ceil() as usize);
    let highest = losses
        .iter()
        .map(|point| point.1)
        .fold(f64::MIN_POSITIVE, f64::max);
    let range = 0.0..highest * 1.05;
    let mut panel = self::panel(&left, 12, "training loss", epochs, range, &|y| {
        format!("{y:.1}")
    })?;
    line(&mut panel, losses, PALE, 1, "each step")?;
    line(&mut panel, smooth, BLUE, 2, "mean over a quarter epoch")?;
    legend(&mut panel, SeriesLabelPosition::UpperRight)?;

    let points: Vec<(f64, f64)> = curves
        .accuracies
        .iter()
        .enumerate()
        .map(|(epoch, &accuracy)| (epoch as f64 + 1.0, 100.0 * accuracy))
        .collect();
    let lowest = points.iter().map(|point| point.1).fold(100.0, f64::min);
    let floor = ((lowest - 2.0) / 10.0).floor().max(0.0) * 10.0;
    let range = floor..100.0;
    let mut panel = self::panel(&right, LABEL, "test accuracy, %", epochs, range, &|y| {
        format!("{y:.0}")
    })?;
    let dots = points
        .iter()
        .map(|&point| Circle::new(point, 3, ORANGE.filled()));
    panel.draw_series(dots)?;
    if let Some(&last) = points.last() {
        // Beside its point, in the margin: above it, it would hang over the epoch before.
        let style = TextStyle::from(font(15)).color(&BLACK);
        let style = style.pos(Pos::new(HPos::Left, VPos::Center));
        let label = format!("{:.1} %", last.1);
        let text = EmptyElement::at(last) + Text::new(label, (8, 0), style);
        panel.draw_series(std::iter::once(text))?;
    }
    line(&mut panel, points, ORANGE, 2, "after each epoch")?;
    legend(&mut panel, SeriesLabelPosition::LowerRight)?;
    area.present()
}

fn panel<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
    margin_right: u32,
    what: &str,
    epochs: f64,
    range: Range<f64>,
    label: &dyn Fn(&f64) -> String,
) -> Drawing<Panel<'a, 'b>> {
    let mut panel = ChartBuilder::on(area)
        .margin(12)
        .margin_right(margin_right)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..epochs, range)?;
    panel
        .configure_mesh()
        .x_desc("epoch")
        .y_desc(what)
        .axis_desc_style(font(15))
        .label_style(font(13))
        .x_labels(epochs.min(10.0) as usize + 1)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_labels(6)
        .y_label_formatter(label)
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .draw()?;
    Ok(panel)
}

fn line(
    panel: &mut Panel<'_, '_>,
    points: Vec<(f64, f64)>,
    color: RGBColor,
    width: u32,
    name: &str,
) -> Drawing<()> {
    let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
    let series = LineSeries::new(points, color.stroke_width(width));
    panel.draw_series(series)?.label(name).legend(key);
    Ok(())
}

fn legend<'a, 'b: 'a>(panel: &mut Panel<'a, 'b>, position: SeriesLabelPosition) -> Drawing<()> {
    let mut labels = panel.configure_series_labels();
    labels
        .position(position)
        .label_font(font(13))
        .background_style(WHITE.mix(0.85))
        .draw()
}

fn font(size: i32) -> plotters::style::FontDesc<'static> {
    ("sans-serif", size).into_font()
}

/// Each point's mean with the `window - 1` points before it.
fn running_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    (0..points.len())
        .map(|end| {
            let part = &points[(end + 1).saturating_sub(window.max(1))..=end];
            let mean = part.iter().map(|point| point.1).sum::<f64>() / part.len() as f64;
            (points[end].0, mean)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_looks_back() {
        let points = [(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)];
        assert_eq!(
            running_mean(&points, 2),
            [(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]
        );
        assert_eq!(running_mean(&points, 0), points);
    }

    #[test]
    fn pictures_hold_both_curves() {
        let path = std::env::temp_dir().join(format!("phalanx-chart-{}.svg", std::process::id()));
        let losses = (0..40u32)
            .map(|step| (step * 37 % 11) as f32 * 0.02 + 2.3 / (1.0 + step as f32))
            .collect();
        let curves = Curves {
            losses,
            accuracies: vec![0.61, 0.7, 0.85],
        };
        draw(&path, "a title", &curves).unwrap();
        let picture = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for text in [
            "a title",
            "training loss",
            "test accuracy, %",
            "85.0 %",
            "</svg>",
        ] {
            assert!(picture.contains(text), "no {text:?} in the picture");
        }
        let nowhere = Path::new("/no/such/folder/x.svg");
        for error in [draw(nowhere, "", &curves), prepare(nowhere)] {
            assert!(error.unwrap_err().to_string().contains("/no/such"));
        }
        let error = prepare(Path::new("x.png")).unwrap_err();
        assert!(error.to_string().contains("x.png should end in .svg"));
    }

    #[test]
    fn the_last_accuracy_stands_beside_its_point() {
        for accuracies in [vec![0.61, 0.7, 0.999], vec![0.9, 0.8, 0.1], vec![0.5]] {
            let mut picture = String::new();
            let area = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
            let losses = vec![1.0; 30];
            let label = format!("{:.1} %", 100.0 * accuracies.last().unwrap());
            paint(&area, "", &Curves { losses, accuracies }).unwrap();
            drop(area);
            let of = |element: &str, name: &str| -> f64 {
                let start = element.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
                element[start..].split('"').next().unwrap().parse().unwrap()
            };
            let point = picture.rsplit("<circle").next().unwrap();
            let text = picture
                .split("<text")
                .find(|text| text.contains(&label))
                .unwrap();
            let (x, y) = (of(text, "x"), of(text, "y"));
            let (cx, cy) = (of(point, "cx"), of(point, "cy"));
            assert!(
                x > cx && x < cx + 20.0,
                "{label} begins at {x}, its point is at {cx}"
            );
            assert!(text.contains("text-anchor=\"start\""), "{text}");
            assert!(x + 60.0 <= f64::from(SIZE.0), "{label} is cut off");
            assert!(
                (y - cy).abs() < 12.0,
                "{label} is at {y}, its point at {cy}"
            );
        }
    }

    #[test]
    fn a_training_of_no_epochs_has_a_picture() {
        let path = std::env::temp_dir().join(format!("phalanx-empty-{}.svg", std::process::id()));
        draw(
            &path,
            "nothing",
            &Curves {
                losses: vec![],
                accuracies: vec![],
            },
        )
        .unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
