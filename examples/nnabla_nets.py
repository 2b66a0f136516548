"""Train resnet23 and the nine quantized networks of NNabla's example, on Fashion-MNIST or CIFAR-10.

Use: python examples/nnabla_nets.py --net binary-weight --recipe best --epochs 5
     python examples/nnabla_nets.py --net all --recipe nnabla
It finds Fashion-MNIST or downloads it; --data takes a folder of other data. A run that was stopped goes on
where it was when started again. It needs rich: pip install 'jqz[demo]'.
"""

import argparse
import pathlib

from parts import fashion_mnist, loop, recipes, resnet23

import jqz


def run(net, arguments, data):
    """Trains one network, or finds it trained; returns its record and what the recipe has to say of it."""
    batch = arguments.batch or (64 if arguments.recipe == "nnabla" else 128)
    plan, place = loop.Plan(arguments.epochs, batch, arguments.seed), net
    base = resnet23.ResNet23(arguments.maps, arguments.units, classes=1 + int(data.train.labels.max()))
    size = f"maps{base.maps}-epochs{arguments.epochs}-batch{plan.batch}-seed{plan.seed}"
    folder = pathlib.Path(arguments.cache) / f"resnet23-{data.name}-{arguments.recipe}-{size}"
    if arguments.recipe == "nnabla":
        job = recipes.nnabla(net, base, plan, data)
    elif net == "float":
        job = recipes.best(net, base, plan, data)
    else:  # the float network comes first: the others start and learn from it
        state = run("float", arguments, data)[0].state
        start = {"params": state.params, **state.rest}
        if arguments.longer > 1:
            plan, place = plan._replace(epochs=arguments.longer * plan.epochs), f"{net}-x{arguments.longer}"
        job = recipes.best(net.removesuffix("-again"), base, plan, data, start)
    record = loop.train(net, job.step, job.predict, job.state, data, plan, folder / place)
    return record, job.finish(record.state)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(resnet23.networks(1))
    parser.add_argument("--net", default="binary-weight", choices=["all", "float-again", *names], metavar="NAME")
    parser.add_argument(
        "--recipe", default="best", choices=["nnabla", "best"], help="as NNabla's, or as well as it goes"
    )
    parser.add_argument("--maps", type=int, default=32, help="width of the network (NNabla: 64; default 32)")
    parser.add_argument("--units", type=int, default=7, help="bottlenecks (default 7)")
    parser.add_argument("--epochs", type=int, default=5, help="of training (NNabla: 300; default 5)")
    parser.add_argument(
        "--longer", type=int, default=1, metavar="TIMES", help="epochs of what starts from the float network (best)"
    )
    parser.add_argument("--batch", type=int, help="images a step (default 64 for nnabla, 128 for best)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", metavar="FOLDER", help="of idx files, or of CIFAR-10's binary version")
    parser.add_argument("--cache", default=".cache", metavar="FOLDER", help="for checkpoints and downloads")
    arguments = parser.parse_args()
    jqz.tune_allocator()
    data = fashion_mnist.load(arguments.data, arguments.cache)
    print(data.source)
    again = ["float-again"] if arguments.recipe == "best" else []
    for net in ["float", *again, *names[1:]] if arguments.net == "all" else [arguments.net]:
        record, figures = run(net, arguments, data)
        last, top = record.accuracy[-1], max(record.accuracy)
        more = "".join(f", {name} {figure:,.2f}".replace(".00", "") for name, figure in figures.items())
        print(f"{net}: test {last:.2f} % (best epoch {top:.2f} %), {float(record.seconds):.0f} s{more}", flush=True)


if __name__ == "__main__":
    main()
