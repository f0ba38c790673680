@testset "precompilation" begin
    # A statement whose function has changed does nothing, and says nothing.
    @test LVDJuice.STALE == []
    count = length(LVDJuice.STALE)
    LVDJuice.precompile(num_units, (String, Int))
    @test length(LVDJuice.STALE) == count + 1
    pop!(LVDJuice.STALE)
end

@testset "the rehearsal goes through" begin
    @test LVDJuice.REHEARSED[] === nothing  # as the package was precompiled
    LVDJuice.rehearse()
end
