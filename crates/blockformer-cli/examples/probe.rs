use burn::tensor::{Device, Distribution, Tensor, activation};
use std::time::Instant;
#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn med(mut f: impl FnMut()) -> f64 {
    f();
    let mut v: Vec<f64> = (0..5)
        .map(|_| {
            let t = Instant::now();
            f();
            t.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    v.sort_by(|a, b| a.total_cmp(b));
    v[2]
}
fn main() {
    let d = Device::flex();
    let r2 = |a: usize, b: usize| Tensor::<2>::random([a, b], Distribution::Normal(0., 1.), &d);
    for (m, k, n) in [
        (10240, 256, 704),
        (10240, 704, 256),
        (10240, 256, 768),
        (8128, 256, 4096),
        (8128, 4096, 256),
        (256, 10240, 704),
        (704, 10240, 256),
        (256, 8128, 4096),
        (4096, 8128, 256),
    ] {
        let gf = 2e-6 * (m * k * n) as f64;
        let (a, b) = (r2(m, k), r2(k, n));
        let t = med(|| {
            std::hint::black_box(a.clone().matmul(b.clone()).dims());
        });
        let bt = r2(n, k);
        let t2 = med(|| {
            std::hint::black_box(a.clone().matmul(bt.clone().transpose()).dims());
        });
        let at = r2(k, m);
        let t3 = med(|| {
            std::hint::black_box(at.clone().transpose().matmul(b.clone()).dims());
        });
        println!(
            "{m}x{k}x{n}: NN {:.1} ms {:.0} GF/s | NT {:.1} ms {:.0} | TN {:.1} ms {:.0}",
            t,
            gf / t,
            t2,
            gf / t2,
            t3,
            gf / t3
        );
    }
    let q = Tensor::<4>::random([2048, 8, 5, 32], Distribution::Normal(0., 1.), &d);
    let p = Tensor::<4>::random([2048, 8, 5, 5], Distribution::Normal(0., 1.), &d);
    println!(
        "q@kT {:.1} ms  p@v {:.1} ms pT@v {:.1} softmax {:.1}",
        med(|| {
            std::hint::black_box(q.clone().matmul(q.clone().transpose()).dims());
        }),
        med(|| {
            std::hint::black_box(p.clone().matmul(q.clone()).dims());
        }),
        med(|| {
            std::hint::black_box(p.clone().transpose().matmul(q.clone()).dims());
        }),
        med(|| {
            std::hint::black_box(activation::softmax(p.clone(), 3).dims());
        })
    );
    let x = r2(10240, 704);
    println!(
        "silu {:.1} mul {:.1} add {:.1} gelu {:.1} sigmoid {:.1} exp {:.1} clone+sum {:.1} mulscalar {:.1}",
        med(|| {
            std::hint::black_box(activation::silu(x.clone()).dims());
        }),
        med(|| {
            std::hint::black_box((x.clone() * x.clone()).dims());
        }),
        med(|| {
            std::hint::black_box((x.clone() + x.clone()).dims());
        }),
        med(|| {
            std::hint::black_box(activation::gelu(x.clone()).dims());
        }),
        med(|| {
            std::hint::black_box(activation::sigmoid(x.clone()).dims());
        }),
        med(|| {
            std::hint::black_box(x.clone().exp().dims());
        }),
        med(|| {
            std::hint::black_box(x.clone().sum().dims());
        }),
        med(|| {
            std::hint::black_box((x.clone() * 2.0).dims());
        })
    );
    let l = r2(8128, 4096);
    println!(
        "log_softmax {:.1} softmax {:.1} exp {:.1} add {:.1}",
        med(|| {
            std::hint::black_box(activation::log_softmax(l.clone(), 1).dims());
        }),
        med(|| {
            std::hint::black_box(activation::softmax(l.clone(), 1).dims());
        }),
        med(|| {
            std::hint::black_box(l.clone().exp().dims());
        }),
        med(|| {
            std::hint::black_box((l.clone() + l.clone()).dims());
        })
    );
    let n = burn::nn::RmsNormConfig::new(256).init(&d);
    let ln = burn::nn::LayerNormConfig::new(256).init(&d);
    let h = Tensor::<3>::random([2048, 5, 256], Distribution::Normal(0., 1.), &d);
    println!(
        "rms {:.1} ln {:.1}",
        med(|| {
            std::hint::black_box(n.forward(h.clone()).dims());
        }),
        med(|| {
            std::hint::black_box(ln.forward(h.clone()).dims());
        })
    );
}
