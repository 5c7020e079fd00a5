"""SentEval's probe in torch, one after another: the oracle of ours."""

import copy

import numpy as np
import torch

torch.set_num_threads(1)  # steps this small only wait for other threads


def fit(x_MD, y_M, split, decay, classes, protocol, seed):
    """The development rows that the best weights get right, and the model that has them."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(x_MD.shape[1], classes))
    rule = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[protocol.optimizer]
    optimizer = rule(model.parameters(), weight_decay=decay)
    if split.drawn_rows:
        np.random.permutation(split.drawn_rows)
    x, y = torch.tensor(x_MD[split.train]), torch.tensor(y_M[split.train])
    x_dev, y_dev = torch.tensor(x_MD[split.development]), torch.tensor(y_M[split.development])
    loss = torch.nn.CrossEntropyLoss()
    best, best_model, worse, epochs = -1, None, 0, 0
    while epochs <= protocol.max_epoch:
        for _ in range(protocol.epoch_size):
            order = np.random.permutation(len(x))
            for start in range(0, len(x), protocol.batch):
                rows = torch.tensor(order[start : start + protocol.batch])
                optimizer.zero_grad()
                loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
        epochs += protocol.epoch_size
        right = int((model(x_dev).argmax(1) == y_dev).sum())
        if right > best:
            best, best_model = right, copy.deepcopy(model)
        elif worse >= protocol.tenacity:
            break
        else:
            worse += 1
    return best, best_model


def predict(model, x_MD):
    """The class of each row."""
    return model(torch.tensor(x_MD)).argmax(1).numpy()
