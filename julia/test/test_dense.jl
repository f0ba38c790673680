# The matrix products over a tile, held to plain sums in Float64: sizes with and without whole vectors and blocks, for CPUs with
# few registers and with many.

@testset "dense blocks" begin
    tile, wide = LVDJuice.TILE, LVDJuice.WIDE[]
    rng = MersenneTwister(1)
    try
        for registers in (false, true), (inputs, outputs, gap, room) in
            ((1, 1, 0, 0), (5, 1, 8, 0), (3, 5, 2, 0), (16, 16, 0, 15), (17, 7, 0, 3), (40, 13, 5, 0), (31, 6, 0, 100),
             (112, 50, 16, 1), (150, 24, 0, 7))
            LVDJuice.WIDE[] = registers
            stride = inputs + gap
            w = rand(rng, Float32, stride * outputs)
            value, r = rand(rng, Float32, tile, inputs), rand(rng, Float32, tile, outputs)
            W = Float64.(reshape(w, stride, outputs)[1:inputs, :])

            out = fill(NaN32, tile, outputs)
            GC.@preserve w value out LVDJuice.multiply!(pointer(out), pointer(value), pointer(w), stride, inputs, outputs)
            @test out ≈ value * W rtol = 1e-5

            flow = fill(NaN32, tile, inputs)
            down(adds) = GC.@preserve w value r flow LVDJuice.flow_down!(pointer(flow), pointer(value), pointer(r), pointer(w), stride,
                                                                         inputs, outputs, adds)
            down(false)
            @test flow ≈ value .* (r * W') rtol = 1e-5
            down(true)
            @test flow ≈ 2 .* value .* (r * W') rtol = 1e-5

            before = rand(rng, Float32, stride * outputs + room)
            stat, turned = vcat(before, fill(7f0, 64)), Vector{Float32}(undef, LVDJuice.turned_length(inputs))
            GC.@preserve stat value r turned LVDJuice.edge_flows!(pointer(stat), pointer(value), pointer(r), stride, inputs, outputs,
                                                                  pointer(turned), length(before))
            expected = Float64.(before)
            reshape(view(expected, 1:stride * outputs), stride, outputs)[1:inputs, :] .+= value' * r
            @test stat[1:length(before)] ≈ expected rtol = 1e-5
            others = [(k - 1) * stride + j for k in 1:outputs for j in inputs + 1:stride]
            @test stat[others] == before[others]
            @test all(==(7f0), stat[length(before) + 1:end])  # what lies beyond is not touched
        end
    finally
        LVDJuice.WIDE[] = wide
    end
end
