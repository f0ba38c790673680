@testset "invalid circuits are refused with the unit and the reason" begin
    table = Float32[0.25 0.75; 0.5 0.5]
    builder() = (b = LVDJuice.Builder(2); LVDJuice.add_inputs!(b, 1, table); LVDJuice.add_inputs!(b, 2, table); b)
    @test Plan(let b = builder()
        p = LVDJuice.add_product!(b, [1, 3])
        Circuit(b, [LVDJuice.add_sum!(b, [p], [1.0])])
    end) isa Plan
    refused(make) = message_of(() -> (b = builder(); make(b); Plan(Circuit(b, [length(b.kind)]))))
    @test occursin("unit 4: a sum over different scopes", refused(b -> LVDJuice.add_sum!(b, [1, 3], [0.5, 0.5])))
    @test occursin("unit 4: a product over overlapping scopes: variable 1", refused(b -> LVDJuice.add_product!(b, [1, 2])))
    @test occursin("unit 4: its parameters sum to 0.9", refused(b -> LVDJuice.add_sum!(b, [1, 2], [0.5, 0.4])))
    @test occursin("unit 4: child 6 does not come before it", refused(b -> LVDJuice.add_sum!(b, [7], [1.0])))
    @test occursin("unit 4: no children", refused(b -> LVDJuice.add_sum!(b, Int[], Float32[])))
    @test occursin("unit 4: parameter NaN", refused(b -> LVDJuice.add_sum!(b, [1, 2], [NaN32, 1])))
    @test occursin("unit 4: variable 3 is outside 1..2", refused(b -> LVDJuice.add_inputs!(b, 3, Float32[0.5 0.5])))
    @test occursin("unit 5: variable 2 has 3 categories here, 2 in unit 2",
                   refused(b -> (LVDJuice.add_inputs!(b, 1, table[1:1, :]); LVDJuice.add_inputs!(b, 2, ones(Float32, 1, 3) ./ 3))))
    @test occursin("head 8", message_of(() -> Circuit(builder(), [9])))
end

@testset "random numbers are the same on every Julia" begin
    rng = LVDJuice.SplitMix(0)
    rng.state = 1234567  # the reference implementation's first outputs from this state
    @test [LVDJuice.next64!(rng) for _ in 1:3] == [0x599ed017fb08fc85, 0x2c73f08458540fa5, 0x883ebce5a3f27c77]
    @test sort(LVDJuice.shuffle!(LVDJuice.SplitMix(1, 2), collect(1:100))) == 1:100
    counts = zeros(Int, 5)
    rng = LVDJuice.SplitMix(3)
    for _ in 1:10_000
        counts[LVDJuice.below!(rng, 5)] += 1
    end
    @test all(1850 .< counts .< 2150)
end
