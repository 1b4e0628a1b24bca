//! Replicas of a pipeline: they begin with the same values, and average their gradients.

use super::stage::Stage;
use crate::reduce::GradReducer;
use crate::{ReduceConfig, Result, replicas, talk};
use phalanx_comm::ProcessGroup;
use std::sync::Arc;

/// Gives the stages of all replicas the values of the first one's, and makes what averages their gradients. `group` are the
/// ranks of this replica, `data` those that have this rank's stages: where the stages of one rank differ between replicas,
/// all ranks are told.
pub(super) fn replicate(
    group: &dyn ProcessGroup,
    data: &Arc<dyn ProcessGroup>,
    stages: &[Stage],
    config: &ReduceConfig,
) -> Result<Vec<(usize, GradReducer)>> {
    let one = |stage: &Stage| {
        let (params, buffers) = (
            stage.module.named_parameters(),
            stage.module.named_buffers(),
        );
        replicas::structures_agree(&**data, String::new(), &params, &buffers)?;
        let devices = params.iter().map(|(_, p)| p.device());
        let devices = devices.chain(buffers.iter().map(|(_, b)| b.device()));
        let over = talk::over_devices(Arc::clone(data), devices)?;
        replicas::take_values_of(0, &params, buffers, &*over)?;
        let reducer = GradReducer::of_agreed(stage.trainable(), over, config.clone())?;
        Ok((stage.number, reducer))
    };
    let made = stages.iter().map(one).collect::<Result<Vec<_>>>();
    let text = match &made {
        Ok(_) => String::new(),
        Err(error) => format!("no pipeline: {error}"),
    };
    let alike = talk::agree(group, "pipelines", &text);
    let made = made?;
    alike.map(|()| made)
}
