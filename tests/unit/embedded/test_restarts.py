from embedded.restarts import RestartPolicy


class TestRestartPolicy:
    def test_delay_doubles_with_each_quick_death(self):
        policy = RestartPolicy(quick_death_s=10, max_quick_deaths=5)

        assert [policy.delay_after_death(1.0) for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]

    def test_gives_up_at_the_last_quick_death_in_a_row(self):
        policy = RestartPolicy(quick_death_s=10, max_quick_deaths=3)

        assert policy.delay_after_death(0.0) is not None
        assert policy.delay_after_death(0.0) is not None
        assert policy.delay_after_death(0.0) is None

    def test_a_long_life_clears_the_record(self):
        policy = RestartPolicy(quick_death_s=10, max_quick_deaths=2)
        policy.delay_after_death(1.0)

        assert policy.delay_after_death(10.0) == 0.5
        assert policy.delay_after_death(1.0) is not None

    def test_delay_has_a_ceiling(self):
        policy = RestartPolicy(quick_death_s=10, max_quick_deaths=100)

        assert max(policy.delay_after_death(0.0) for _ in range(50)) == 30.0
