package subscribe_test

const drainEnv = "SLIPSTREAM_TEST_DRAIN"

func drain() {}
