package simrelay

import "errors"

func newLoop(cfg Config) (source, error) { return nil, errors.New("loop mode is missing") }
