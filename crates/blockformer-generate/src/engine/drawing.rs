//! Blocks whose tokens are drawn where the logits are, and read together.

use blockformer_cubecl::has_kernels;
use burn::tensor::{Bool, DType, Device, FloatDType, Int, IntDType, Tensor, TensorData};

use super::Engine;
use super::context::{RowContext, indices_of, rows_of};
use super::decode::Logits;
use super::job::Row;
use crate::block::id_tensor;
use crate::device_sampler::{choose, column, token, uniforms_of};
use crate::paged::PagedModel;
use crate::read_back::read_tokens_async;
use crate::{GenerateError, Sampling};

/// Rows whose tokens are drawn in the same way.
struct Group {
    /// Places of the batch, in order.
    rows: Vec<usize>,
    /// The same for the device, if they are not all rows and not neighbours.
    indices: Option<Tensor<1, Int>>,
    /// The way; `None` if it takes the host.
    on_device: Option<OnDevice>,
}

struct OnDevice {
    sampling: Sampling,
    /// A column for each place of the block, `[rows, places]`; none if the likeliest tokens are taken.
    uniforms: Option<Tensor<2>>,
    /// What was drawn, `[rows, 1]` for each place.
    drawn: Vec<Tensor<2, Int>>,
}

/// A batch of rows that begin a block.
pub(super) struct Batch {
    groups: Vec<Group>,
    /// Tokens that rows were given, the rest of their prompts.
    given: Vec<Vec<u32>>,
    /// Random numbers of the places of each row; none of those that are drawn on the host or the likeliest.
    numbers: Vec<Vec<f32>>,
    /// Places of the block that somebody needs.
    places: usize,
    /// For each row its place among those of all groups, one after another; `None` if they are in order.
    order: Option<Tensor<1, Int>>,
}

impl Batch {
    fn new(rows: &mut [Row], block_length: usize) -> Self {
        let given: Vec<Vec<u32>> = rows.iter().map(|row| row.block.clone()).collect();
        let needed = |row: &Row| row.block.len() + row.request.max_new_tokens - row.generated;
        let places = rows.iter().map(needed).max().unwrap_or(0).min(block_length);
        let mut groups: Vec<Group> = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let sampling = row.draws_on_device().then(|| row.sampler.sampling());
            let alike = |group: &&mut Group| match (&group.on_device, sampling) {
                (None, None) => true,
                (Some(on_device), Some(sampling)) => draw_alike(&on_device.sampling, sampling),
                _ => false,
            };
            match groups.iter_mut().find(alike) {
                Some(group) => group.rows.push(index),
                None => {
                    let new = |sampling: &Sampling| OnDevice {
                        sampling: sampling.clone(),
                        uniforms: None,
                        drawn: Vec::with_capacity(places),
                    };
                    groups.push(Group { rows: vec![index], indices: None, on_device: sampling.map(new) });
                }
            }
        }
        let mut numbers = vec![Vec::new(); rows.len()];
        for group in &groups {
            if group.on_device.as_ref().is_some_and(|on_device| !on_device.sampling.is_greedy()) {
                for &row in &group.rows {
                    // As many as are drawn: a row that ends before has no use for the others.
                    let given = given[row].len().min(places);
                    numbers[row].resize(given, 0.0);
                    numbers[row].extend(uniforms_of(&mut rows[row].sampler, places - given));
                }
            }
        }
        Self { groups, given, numbers, places, order: None }
    }

    /// How the tokens of each row are drawn, if all are on the device.
    pub(super) fn all_on_device(&self) -> Option<Vec<&Sampling>> {
        let mut each = vec![None; self.given.len()];
        for group in &self.groups {
            let sampling = &group.on_device.as_ref()?.sampling;
            group.rows.iter().for_each(|row| each[*row] = Some(sampling));
        }
        each.into_iter().collect()
    }

    /// The random numbers of each row, as many as there are places; none where the likeliest are taken.
    pub(super) fn numbers(&self) -> impl Iterator<Item = &[f32]> {
        self.numbers.iter().map(Vec::as_slice)
    }

    /// Sends the device what it takes to launch: which rows are whose, and their random numbers.
    fn send(&mut self, device: &Device) {
        let n = self.given.len();
        let mut order = vec![0; n];
        let of_groups = self.groups.iter().flat_map(|group| &group.rows);
        of_groups.enumerate().for_each(|(position, row)| order[*row] = position as i32);
        let order = || Tensor::from_data(TensorData::new(order, [n]), (device, DType::I32));
        self.order = (self.groups.len() > 1).then(order);
        for group in &mut self.groups {
            group.indices = indices_of(&group.rows, device);
            if let Some(on_device) = group.on_device.as_mut().filter(|on_device| !on_device.sampling.is_greedy()) {
                let numbers = group.rows.iter().flat_map(|row| self.numbers[*row].iter().copied()).collect::<Vec<_>>();
                let data = TensorData::new(numbers, [group.rows.len(), self.places]);
                on_device.uniforms = Some(Tensor::from_data(data, (device, DType::F32)));
            }
        }
    }

    /// Tokens that each row was given.
    pub(super) fn given_tokens(&self) -> impl Iterator<Item = &[u32]> {
        self.given.iter().map(Vec::as_slice)
    }

    /// Ids to go on with, `[rows, 1]`, of those of the groups.
    fn in_order(&self, mut of_groups: Vec<Tensor<2, Int>>, place: usize, device: &Device) -> Tensor<2, Int> {
        let n = self.given.len();
        let ids = match &self.order {
            None => of_groups.remove(0),
            Some(order) => Tensor::cat(of_groups, 0).select(0, order.clone()),
        };
        if self.given.iter().all(|given| given.len() <= place) {
            return ids;
        }
        let known: Vec<bool> = self.given.iter().map(|given| given.len() > place).collect();
        let known = Tensor::<2, Bool>::from_data(TensorData::new(known, [n, 1]), device);
        let tokens: Vec<u32> = self.given.iter().map(|given| given.get(place).copied().unwrap_or(0)).collect();
        ids.clone().mask_where(known, id_tensor(tokens.iter(), [n, 1], device).cast(ids.dtype()))
    }

    /// What was drawn on the device, row after row of its groups, `[rows of them, places]`.
    fn drawn(&mut self) -> Option<Tensor<2, Int>> {
        let on_device = self.groups.iter_mut().filter_map(|group| group.on_device.as_mut());
        let mut parts: Vec<_> = on_device.map(|group| Tensor::cat(std::mem::take(&mut group.drawn), 1)).collect();
        match parts.len() {
            0 | 1 => parts.pop(),
            _ => Some(Tensor::cat(parts, 0)),
        }
    }
}

impl<M: PagedModel> Engine<M> {
    /// Whether tokens of blocks behind `window` are drawn where it is.
    pub(super) fn draws_on_device(&self, window: &Tensor<3>, rows: &[Row]) -> bool {
        let wanted =
            self.config.draw_on_device.unwrap_or_else(|| has_kernels(window) && self.model.keeps_tokens_on_device());
        wanted && rows.iter().any(Row::draws_on_device)
    }

    /// Decodes a block of all rows. The host waits once, or for each token of rows that need it.
    pub(super) async fn draw_block(&mut self, rows: &mut [Row], failed: &mut Vec<(usize, GenerateError)>) {
        let mut batch = Batch::new(rows, self.limits.layout.block_length);
        let contexts: Vec<_> = rows.iter().map(|row| &row.context).collect();
        let repeated = self.recorded.as_mut().and_then(|recorded| recorded.block(&self.model, &batch, &contexts));
        // Tokens, and whose they are.
        let (drawn, of): (_, Vec<usize>) = match repeated {
            Some(drawn) => {
                self.counters.repeated += 1;
                (drawn, (0..rows.len()).collect())
            }
            None => {
                let window = RowContext::windows(&contexts);
                let Some(drawn) = self.launch_block(rows, &mut batch, window, failed).await else { return };
                let on_device = batch.groups.iter().filter(|group| group.on_device.is_some());
                (drawn, on_device.flat_map(|group| group.rows.iter().copied()).collect())
            }
        };
        let places = drawn.dims()[1];
        let drawn = read_tokens_async(drawn).await;
        for (index, drawn) in of.into_iter().zip(drawn.chunks_exact(places)) {
            let row = &mut rows[index];
            for &id in drawn.iter().skip(batch.given[index].len()) {
                if row.finish.is_some() {
                    break;
                }
                if let Err(error) = token(id).and_then(|token| row.take_drawn(token)) {
                    failed.push((index, error));
                    break;
                }
            }
        }
    }

    /// Token by token: what was drawn on the device.
    async fn launch_block(
        &self,
        rows: &mut [Row],
        batch: &mut Batch,
        window: Tensor<3>,
        failed: &mut Vec<(usize, GenerateError)>,
    ) -> Option<Tensor<2, Int>> {
        let layout = &self.limits.layout;
        batch.send(&self.device);
        let (mut block, mut logits) = self.model.begin_blocks(window);
        for place in 0..batch.places {
            let mut ids = Vec::with_capacity(batch.groups.len());
            for group in &mut batch.groups {
                let logits = rows_of(logits.clone(), &group.rows, group.indices.as_ref());
                ids.push(match &mut group.on_device {
                    Some(on_device) => on_device.draw(logits, place).cast(IntDType::I32),
                    None => {
                        self.draw_on_host(rows, &group.rows, (logits, place), failed).await;
                        let tokens: Vec<u32> = group.rows.iter().map(|row| rows[*row].token(place, layout)).collect();
                        id_tensor(tokens.iter(), [tokens.len(), 1], &self.device).cast(IntDType::I32)
                    }
                });
            }
            if place + 1 < batch.places {
                logits = self.model.step_on_device(&mut block, batch.in_order(ids, place, &self.device));
            }
        }
        batch.drawn()
    }

    /// Draws a token of the rows of `group` that go on and were not given it; `logits` are those of the group.
    pub(super) async fn draw_on_host(
        &self,
        rows: &mut [Row],
        group: &[usize],
        (logits, place): (Tensor<2>, usize),
        failed: &mut Vec<(usize, GenerateError)>,
    ) {
        let wanted = |row: &Row, index: usize, failed: &[(usize, GenerateError)]| {
            let given = place < row.block.len(); // the rest of a prompt
            !given && goes_on(row, index, failed)
        };
        if !group.iter().any(|index| wanted(&rows[*index], *index, failed)) {
            return;
        }
        let logits = Logits::read(logits).await;
        for (position, &index) in group.iter().enumerate() {
            let row = &mut rows[index];
            if wanted(row, index, failed)
                && let Err(error) = row.advance(logits.row(position))
            {
                failed.push((index, error));
            }
        }
    }
}

impl OnDevice {
    /// Ids to go on with, `[rows, 1]`.
    fn draw(&mut self, logits: Tensor<2>, place: usize) -> Tensor<2, Int> {
        let uniforms = self.uniforms.as_ref().map(|uniforms| column(uniforms, place));
        let (ids, checked) = choose(&self.sampling, logits.cast(FloatDType::F32), uniforms);
        self.drawn.push(checked);
        ids
    }
}

/// Whether row `index` of a batch has neither ended nor failed.
pub(super) fn goes_on(row: &Row, index: usize, failed: &[(usize, GenerateError)]) -> bool {
    row.finish.is_none() && !failed.iter().any(|(failed, _)| *failed == index)
}

/// Whether tokens are drawn in the same way, but for the random numbers.
fn draw_alike(a: &Sampling, b: &Sampling) -> bool {
    let how = |of: &Sampling| (of.temperature, of.top_k, of.top_p, of.min_p);
    (a.is_greedy() && b.is_greedy()) || how(a) == how(b)
}
