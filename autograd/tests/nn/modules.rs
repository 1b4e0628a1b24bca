//! Names, visits, states.

use crate::{CPU, cnn, f, vals};
use phalanx_autograd::nn::{
    self, Dropout, Embedding, Factory, LayerNorm, Linear, Module, Sequential, Visitor,
};
use phalanx_autograd::{Error, Result, State, Tape, Var};
use phalanx_tensor::{DType, Device, Rng, Tensor};

fn names<M: Module>(m: &M) -> Vec<String> {
    m.named_parameters()
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Two layers that share a weight, inside a container.
struct Tied {
    input: Embedding,
    body: Sequential,
    head: Linear,
}

impl Tied {
    fn new(f: &mut Factory) -> Tied {
        let input = Embedding::new(5, 3, f).unwrap();
        let mut head = Linear::without_bias(3, 5, f).unwrap();
        head.weight = input.weight.clone();
        let body = Sequential::new()
            .with(Linear::new(3, 3, f).unwrap())
            .with(LayerNorm::new(3, f).unwrap())
            .with(Dropout::new(0.5, f).unwrap());
        Tied { input, body, head }
    }
}

impl Module for Tied {
    fn forward(&self, tape: &Tape, ids: &Var) -> Result<Var> {
        let x = self.input.forward(tape, ids)?;
        self.head.forward(tape, &self.body.forward(tape, &x)?)
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("input", &self.input);
        v.child("body", &self.body);
        v.child("head", &self.head);
    }
}

#[test]
fn parts_have_pytorchs_names() {
    let model = cnn(&mut f());
    assert_eq!(
        names(&model),
        ["0.weight", "1.weight", "1.bias", "4.weight", "4.bias"]
    );
    let buffers: Vec<_> = model
        .named_buffers()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        buffers,
        ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    );
}

#[test]
fn a_shared_parameter_is_visited_once_and_gets_one_gradient() {
    let model = Tied::new(&mut f());
    assert_eq!(
        names(&model),
        [
            "input.weight",
            "body.0.weight",
            "body.0.bias",
            "body.1.weight",
            "body.1.bias"
        ]
    );
    let tape = Tape::new();
    let ids = tape.constant(Tensor::from_slice(&[1i64, 4], [2], CPU).unwrap());
    let y = model.forward(&tape, &ids).unwrap();
    let gradients = tape
        .backward(&y.square().unwrap().sum_all().unwrap())
        .unwrap();
    assert_eq!(gradients.len(), 5);
    // The head's part reaches every row, the table's only two.
    let rows = vals(gradients.get(&model.input.weight).unwrap());
    assert!(rows.chunks(3).all(|row| row.iter().any(|v| *v != 0.0)));
}

#[test]
fn states_round_trip_and_misfits_are_named() {
    let (a, b) = (cnn(&mut f()), cnn(&mut Factory::new(CPU, 8)));
    let tape = Tape::new();
    let x = tape.constant(Tensor::randn([2, 1, 4, 4], DType::F32, CPU, &mut Rng::new(3)).unwrap());
    a.forward(&tape, &x).unwrap(); // moves the running statistics
    let path =
        std::env::temp_dir().join(format!("phalanx-state-{}.safetensors", std::process::id()));
    State::of(&a).unwrap().save(&path).unwrap();
    State::load(&path, CPU).unwrap().load_into(&b).unwrap();
    std::fs::remove_file(&path).unwrap();
    for model in [&a, &b] {
        model.set_training(false);
    }
    let tape = Tape::inference();
    let x = tape.constant(x.into_value());
    assert_eq!(
        vals(a.forward(&tape, &x).unwrap().value()),
        vals(b.forward(&tape, &x).unwrap().value())
    );
    assert_eq!(
        b.named_buffers()[2]
            .1
            .value()
            .unwrap()
            .item::<f64>()
            .unwrap(),
        1.0
    );

    let state = State::of(&a).unwrap();
    assert_eq!(
        state.to_bytes().unwrap(),
        State::of(&b).unwrap().to_bytes().unwrap()
    );
    let before = vals(&b.parameters()[0].value().unwrap());
    let attempt = |change: &dyn Fn(&mut State)| {
        let mut state = state.clone();
        state.insert(
            "0.weight",
            Tensor::zeros([4, 1, 3, 3], DType::F32, CPU).unwrap(),
        );
        change(&mut state);
        state.load_into(&b).unwrap_err()
    };
    let e = attempt(&|s| _ = s.take("4.bias"));
    assert!(
        matches!(&e, Error::MissingTensor { name } if name == "4.bias"),
        "{e}"
    );
    let e = attempt(&|s| s.insert("4.more", Tensor::zeros([1], DType::F32, CPU).unwrap()));
    assert!(
        matches!(&e, Error::UnexpectedTensor { name } if name == "4.more"),
        "{e}"
    );
    let e = attempt(&|s| s.insert("4.bias", Tensor::zeros([4], DType::F32, CPU).unwrap()));
    assert!(
        matches!(&e, Error::SavedMismatch { shape, .. } if **shape == [4]),
        "{e}"
    );
    let e = attempt(&|s| s.insert("4.bias", Tensor::zeros([3], DType::F64, CPU).unwrap()));
    assert!(
        matches!(
            &e,
            Error::SavedMismatch {
                dtype: DType::F64,
                ..
            }
        ),
        "{e}"
    );
    assert_eq!(
        vals(&b.parameters()[0].value().unwrap()),
        before,
        "nothing was changed"
    );
    assert!(matches!(
        State::from_bytes(b"nonsense", CPU),
        Err(Error::Format { .. })
    ));
    assert!(matches!(
        State::load("/nowhere/at/all", CPU),
        Err(Error::File { .. })
    ));
}

#[test]
fn a_model_with_dropout_resumes_bit_for_bit() {
    // One layer in two places has one count.
    let model = || {
        let mut f = f();
        let shared = std::sync::Arc::new(Dropout::new(0.5, &mut f).unwrap());
        Sequential::new()
            .with(shared.clone())
            .with(Dropout::new(0.25, &mut f).unwrap())
            .with(shared)
    };
    let x = Tensor::ones([64], DType::F32, CPU).unwrap();
    let run = |m: &Sequential| {
        let tape = Tape::inference();
        vals(m.forward(&tape, &tape.constant(x.clone())).unwrap().value())
    };
    let (a, b) = (model(), model());
    let fresh = run(&a);
    run(&a);
    let state = State::of(&a).unwrap();
    let counts: Vec<_> = state
        .iter()
        .map(|(n, t)| (n, t.item::<f64>().unwrap()))
        .collect();
    assert_eq!(counts, [("0.uses", 4.0), ("1.uses", 2.0)]);
    let state = State::from_bytes(&state.to_bytes().unwrap(), CPU).unwrap();
    state.load_into(&b).unwrap();
    let next = run(&a);
    assert_ne!(next, fresh);
    assert_eq!(run(&b), next);

    // A file that knows no counts, such as PyTorch's, leaves them; a wrong one changes nothing.
    State::new().load_into(&b).unwrap();
    let mut wrong = state.clone();
    wrong.insert("1.uses", Tensor::scalar(2.0f64, CPU).unwrap());
    let e = wrong.load_into(&b).unwrap_err();
    assert!(
        matches!(&e, Error::SavedMismatch { name, .. } if name == "1.uses"),
        "{e}"
    );
    wrong.insert("1.uses", Tensor::from_slice(&[-1i64], (), CPU).unwrap());
    let e = wrong.load_into(&b).unwrap_err();
    assert!(matches!(&e, Error::Format { .. }), "{e}");
    assert_eq!(run(&b), run(&a));
}

#[test]
fn a_save_that_fails_leaves_nothing_behind() {
    let dir = std::env::temp_dir().join(format!("phalanx-save-{}", std::process::id()));
    let taken = dir.join("taken");
    std::fs::create_dir_all(&taken).unwrap(); // no file can take a directory's name
    let state = State::of(&cnn(&mut f())).unwrap();
    let e = state.save(&taken).unwrap_err();
    assert!(
        matches!(&e, Error::File { path, .. } if *path == taken),
        "{e}"
    );
    let left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(left, [taken]);
}

#[test]
fn a_tied_state_may_use_either_name() {
    let (a, b) = (Tied::new(&mut f()), Tied::new(&mut Factory::new(CPU, 9)));
    let mut state = State::of(&a).unwrap();
    assert!(state.get("head.weight").is_none());
    let weight = state.take("input.weight").unwrap();
    state.insert("head.weight", weight.clone());
    state.load_into(&b).unwrap();
    assert_eq!(vals(&b.input.weight.value().unwrap()), vals(&weight));
    state.insert("input.weight", weight);
    state.load_into(&b).unwrap();
}

#[test]
fn modules_move_between_devices() {
    let model = cnn(&mut f());
    let other = Device::cpu(313);
    model.to_device(other).unwrap();
    let tape = Tape::inference();
    let x = Tensor::ones([2, 1, 4, 4], DType::F32, other).unwrap();
    assert_eq!(
        model.forward(&tape, &tape.constant(x)).unwrap().device(),
        other
    );
}

/// Two variables to two: the second is turned round, and both change places.
struct Swap;

impl Module for Swap {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        nn::one_output("Swap", self.forward_all(tape, std::slice::from_ref(x))?)
    }
    fn forward_all(&self, _tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let [a, b] = nn::inputs("Swap", inputs)?;
        Ok(vec![b.neg()?, a.clone()])
    }
    fn visit(&self, _v: &mut Visitor<'_>) {}
}

/// One variable to as many copies.
struct Copies(usize);

impl Module for Copies {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        nn::one_output("Copies", self.forward_all(tape, std::slice::from_ref(x))?)
    }
    fn forward_all(&self, _tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let [x] = nn::inputs("Copies", inputs)?;
        Ok(vec![x.clone(); self.0])
    }
    fn visit(&self, _v: &mut Visitor<'_>) {}
}

#[test]
fn several_variables_go_from_layer_to_layer() {
    let tape = Tape::new();
    let scalar = |v: f64| tape.constant(Tensor::scalar(v, CPU).unwrap());
    let numbers =
        |vars: Vec<Var>| -> Vec<f64> { vars.iter().map(|v| v.item::<f64>().unwrap()).collect() };
    // Behind a box and an arc, whose own `forward_all` would take one variable only.
    let boxed: Box<dyn Module> = Box::new(Swap);
    let model = Sequential::new()
        .with(Swap)
        .with(boxed)
        .with(std::sync::Arc::new(Swap));
    let out = model.forward_all(&tape, &[scalar(1.0), scalar(2.0)]);
    assert_eq!(numbers(out.unwrap()), [2.0, -1.0]);
    // One in and one out, with two in between.
    let add = Sequential::new().with(Copies(2)).with(Swap).with(Copies(1));
    let e = add.forward(&tape, &scalar(3.0)).unwrap_err();
    assert!(
        matches!(&e, Error::InModule { path, error } if path == "2"
            && matches!(**error, Error::InputCount { module: "Copies", wanted: 1, given: 2 })),
        "{e}"
    );
    let model = Sequential::new().with(Copies(2)).with(Swap);
    let out = model.forward_all(&tape, &[scalar(3.0)]).unwrap();
    assert_eq!(numbers(out), [-3.0, 3.0]);
    for many in [0, 2] {
        let e = Sequential::new()
            .with(Copies(many))
            .forward(&tape, &scalar(3.0));
        let e = e.unwrap_err();
        assert!(
            matches!(e, Error::OutputCount { module: "Sequential", given } if given == many),
            "{e}"
        );
    }
    let none = Sequential::new().forward_all(&tape, &[scalar(1.0), scalar(2.0)]);
    assert_eq!(
        numbers(none.unwrap()),
        [1.0, 2.0],
        "no layers: the identity"
    );
}

#[test]
fn a_layer_of_one_input_says_how_many_came() {
    let tape = Tape::new();
    let layer = Linear::new(3, 2, &mut f()).unwrap();
    let x = tape.constant(Tensor::ones([1, 3], DType::F32, CPU).unwrap());
    let one = layer.forward_all(&tape, std::slice::from_ref(&x)).unwrap();
    let [y] = &one[..] else {
        panic!("{} outputs", one.len())
    };
    assert_eq!(
        vals(y.value()),
        vals(layer.forward(&tape, &x).unwrap().value())
    );
    for many in [0, 3] {
        let e = layer
            .forward_all(&tape, &vec![x.clone(); many])
            .unwrap_err();
        let told = format!("takes 1 input, but got {many}");
        assert!(
            e.to_string().contains("Linear") && e.to_string().ends_with(&told),
            "{e}"
        );
    }
}
